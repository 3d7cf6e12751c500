"""Whole runs on the tiny model: what they leave behind, what they reuse, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from posttrain.errors import CheckpointError, RecipeError
from posttrain.rollout.engine import Engine
from posttrain.runtime.local import LocalLearner

STAGES = ["00-base", "01-sft", "02-dpo", "03-grpo"]
METRICS_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def finished(run_tiny, tmp_path_factory) -> Path:
    """A finished run of all three stages. Read only."""
    folder, _ = run_tiny(tmp_path_factory.mktemp("finished") / "run")
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """One to go on with."""
    return shutil.copytree(finished, tmp_path / "run")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of the last change and content of every file."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_every_file_is_there(finished):
    for name in ("recipe.yaml", "manifest.json", "summary.json", "report.html", "model/config.json"):
        assert (finished / name).stat().st_size > 0
    assert sorted(p.name for p in (finished / "stages").iterdir()) == STAGES
    for name in STAGES:
        stage = finished / "stages" / name
        assert read(stage / "done.json").keys() == {"key", "seconds", "peak_rss_gib", "warnings"}
        samples = [json.loads(line) for line in (stage / "eval/heldout.jsonl").read_text().splitlines()]
        assert len(samples) == 4 * 4
        assert samples[0].keys() == {
            *("problem_id", "sample", "kind", "prompt", "output", "num_tokens", "stop_reason"),
            *("value", "verdict", "reason"),
        }
        if name != "00-base":
            assert (stage / "metrics.jsonl").is_file() and (stage / "model/model.safetensors").is_file()
            assert not list(stage.glob("checkpoints/*")), "the model replaces them"
    assert not list(finished.rglob(".*")), "nothing half-written"


def test_data_is_counted(finished):
    """SFT had eight rows of data and at most two of its own for each of eight problems; DPO pairs."""
    sft = read(finished / "stages/01-sft/data.json")
    assert sft.keys() == {"rows", "tokens", "targets", "dropped", "examples", "sources", "notes"}
    without = sft["dropped"].get("no_correct_completion", 0)
    assert 8 + (8 - without) <= sft["rows"] <= 8 + 2 * (8 - without)
    assert 0 < sft["targets"] < sft["tokens"]
    assert [s["rows_used"] for s in sft["sources"]] == [8, 8]
    assert read(finished / "stages/02-dpo/data.json")["rows"] % 2 == 0
    assert read(finished / "stages/03-grpo/data.json")["rows"] == 8


def test_the_manifest_says_what_ran(finished, talker_dir):
    manifest = read(finished / "manifest.json")
    assert manifest.keys() == {
        *("name", "recipe_hash", "created", "finished", "seed", "versions", "git", "machine", "model"),
        "stages",
    }
    assert [stage["name"] for stage in manifest["stages"]] == STAGES
    assert [stage["kind"] for stage in manifest["stages"]] == ["base", "sft", "dpo", "grpo"]
    assert len({stage["key"] for stage in manifest["stages"]}) == 4
    for stage in manifest["stages"]:
        assert read(finished / "stages" / stage["name"] / "done.json")["key"] == stage["key"]
    assert manifest["finished"] >= manifest["created"]
    assert manifest["model"]["name"] == str(talker_dir)
    assert (manifest["machine"]["device"], manifest["machine"]["dtype"]) == ("cpu", "float32")


def test_the_summary_is_the_samples_mean(finished):
    """Its exact form; scores recomputed from the samples on disk."""
    summary = read(finished / "summary.json")
    assert summary.keys() == {"seconds", "peak_rss_gib", "stages", "gain"}
    assert [entry["name"] for entry in summary["stages"]] == STAGES
    scores = []
    for entry in summary["stages"]:
        assert entry.keys() == {"name", "mean_score", "stderr"}
        lines = (finished / "stages" / entry["name"] / "eval/heldout.jsonl").read_text().splitlines()
        scores.append(sum(json.loads(line)["value"] for line in lines) / len(lines))
        assert entry["mean_score"] == pytest.approx(scores[-1])
    assert summary["gain"].keys() == {"value", "ci95"}
    assert summary["gain"]["value"] == pytest.approx(scores[-1] - scores[0])
    low, high = summary["gain"]["ci95"]
    assert low <= summary["gain"]["value"] <= high


def test_the_stages_teach_the_task(finished):
    """Saying a or b is right and a letter of four is said at first: the score ends clearly above the start."""
    scores = [entry["mean_score"] for entry in read(finished / "summary.json")["stages"]]
    assert scores[-1] > scores[0]


def documented(*sections: str) -> set[str]:
    """Metric names in the tables under these headings of docs/metrics.md."""
    names: set[str] = set()
    for part in METRICS_PAGE.read_text().split("\n## ")[1:]:
        if part.startswith(sections):
            names |= set(re.findall(r"^\| `([^`]+)`", part, flags=re.MULTILINE))
    return names


NOT_ALWAYS = {
    "sampling/importance_weight_mean",  # with importance_cap
    "sampling/importance_capped_fraction",
    "loss/entropy_nats",  # with entropy_coefficient
    "reward/length_penalty_mean",  # with overlong_buffer_tokens
    "completions/masked_fraction",  # with truncated mask
    "loss/chosen_nats_per_token",  # orpo
    "loss/odds_ratio_nats",
    "loss/reference_point_nats",  # kto
}


@pytest.mark.parametrize(("stage", "section"), [("01-sft", "SFT"), ("02-dpo", "DPO"), ("03-grpo", "GRPO")])
def test_metrics_are_those_of_the_documentation(finished, stage, section):
    """Nothing is logged that the page does not explain, and all that it promises for the stage is logged."""
    lines = [json.loads(x) for x in (finished / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    logged = set().union(*lines)
    assert logged - documented("All stages", section) == set()
    assert documented(section) - NOT_ALWAYS - logged == set()
    assert all(line[name] is not None for line in lines for name in line)


def test_the_report_is_one_page(finished):
    page = (finished / "report.html").read_text()
    assert page.lower().startswith("<!doctype html") and "GRPO" in page
    assert "<script" not in page


def test_the_model_loads_by_path_alone(finished, talker_dir):
    """`AutoModelForCausalLM` and the stage's own model agree on logits, and both moved. Closes T56, T57."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Say 1."}], tokenize=False)
    ids = torch.tensor([tokenizer.encode(text)])
    places = (finished / "model", finished / "stages/03-grpo/model", talker_dir)
    with torch.no_grad():
        final, stage, start = (AutoModelForCausalLM.from_pretrained(p)(ids).logits for p in places)
    assert torch.equal(final, stage)
    assert (final - start).abs().max() > 1e-3
    config = read(finished / "model/config.json")
    assert config["dtype"] == "float32"
    record = read(finished / "model/posttrain.json")
    assert record["base_model"] == str(talker_dir) and record["metadata"]["stage"] == "03-grpo"
    assert set(record["stop_ids"]) <= {*_ends(read(finished / "model/generation_config.json"))}


def _ends(config: dict) -> list[int]:
    ends = config["eos_token_id"]
    return ends if isinstance(ends, list) else [ends]


def test_rollouts_name_their_stage_weights(finished):
    """A stage samples from the weights it starts with, version 0, whatever the stage before counted."""
    for stage in ("01-sft", "02-dpo"):
        (table,) = (finished / "stages" / stage / "rollouts").glob("rejection_*.parquet")
        assert set(parquet.read_table(table)["weights_version"].to_pylist()) == {0}


def test_a_finished_run_is_not_run_again(copied, run_tiny):
    """Every file of every stage untouched, nothing trained, and the manifest's times stay."""
    long_ago = {"created": "2020-01-01T00:00:00+00:00", "finished": "2020-01-01T01:00:00+00:00"}
    manifest = read(copied / "manifest.json") | long_ago
    (copied / "manifest.json").write_text(json.dumps(manifest))
    before = snapshot(copied / "stages")
    _, said = run_tiny(copied)
    assert snapshot(copied / "stages") == before
    assert [f"{name}: finished before" in said for name in STAGES] == [True] * 4
    assert {key: read(copied / "manifest.json")[key] for key in long_ago} == long_ago
    assert (copied / "model/model.safetensors").is_file()


def test_a_changed_stage_is_refused_before_anything_is_written(copied, run_tiny):
    """One sentence names the folder; the record of the run stays that of what ran."""
    before = snapshot(copied)
    with pytest.raises(
        CheckpointError, match=r"03-grpo holds a stage with other settings.*delete that folder"
    ):
        run_tiny(copied, "stages.2.grpo.learning_rate=2e-3")
    with pytest.raises(CheckpointError, match="01-sft holds a stage with other settings"):
        run_tiny(copied, "stages.0.sft.epochs=1")
    with pytest.raises(CheckpointError, match="00-base holds a stage with other settings"):
        run_tiny(copied, "seed=2")
    assert snapshot(copied) == before


def test_what_comes_before_a_change_is_reused(copied, run_tiny):
    """With its folder gone, the changed last stage alone is made again, from the same DPO model."""
    kept = {name: snapshot(copied / "stages" / name) for name in STAGES[:3]}
    old = (copied / "stages/03-grpo/model/model.safetensors").read_bytes()
    shutil.rmtree(copied / "stages/03-grpo")
    run_tiny(copied, "stages.2.grpo.learning_rate=2e-3")
    assert {name: snapshot(copied / "stages" / name) for name in STAGES[:3]} == kept
    assert (copied / "stages/03-grpo/model/model.safetensors").read_bytes() != old
    assert (copied / "model/model.safetensors").read_bytes() == (
        copied / "stages/03-grpo/model/model.safetensors"
    ).read_bytes()
    assert "learning_rate: 0.002" in (copied / "recipe.yaml").read_text()


def test_a_stage_after_a_change_is_refused_too(copied, run_tiny):
    """Deleting only the changed stage is not enough: what was built on it is stale, and is named at once."""
    shutil.rmtree(copied / "stages/02-dpo")
    with pytest.raises(CheckpointError, match="03-grpo holds"):
        run_tiny(copied, "stages.1.dpo.beta=0.2")
    assert not (copied / "stages/02-dpo").exists(), "refused before the stage before it is made"


def test_memory_settings_do_not_make_another_run(copied, run_tiny):
    """Micro-batch size and cache decide memory, not results: the finished run is still this one."""
    _, said = run_tiny(copied, "runtime.max_tokens_per_micro_batch=50", "runtime.sampler_cache_gib=0.1")
    assert "03-grpo: finished before" in said


def test_changed_data_is_another_run(copied, run_tiny, recipe_files, tmp_path):
    """Content decides: the same rows at the same path pass, one row more is refused."""
    talk = recipe_files / "talk.jsonl"
    text = talk.read_text()
    try:
        talk.write_text(text + text.splitlines()[0].replace('"c0"', '"c99"') + "\n")
        with pytest.raises(CheckpointError, match="01-sft holds a stage with other settings, data or code"):
            run_tiny(copied)
    finally:
        talk.write_text(text)


def test_an_unknown_verifier_is_refused_before_the_first_step(run_tiny, tmp_path):
    """Though it is the last stage's: no stage begins, nothing is sampled. Closes T52."""
    problems = tmp_path / "problems.jsonl"
    row = {"messages": [{"role": "user", "content": "?"}], "ground_truth": "a", "dataset": "strin"}
    problems.write_text(json.dumps(row) + "\n")
    with pytest.raises(RecipeError, match="there is no verifier 'strin'; did you mean 'string'"):
        run_tiny(tmp_path / "run", f"stages.2.grpo.problems=[{{path: {problems}}}]")
    assert list((tmp_path / "run" / "stages").iterdir()) == []


def test_without_evaluation(run_tiny, tmp_path, recipe_files):
    """Nothing is measured, and the summary says so with nulls."""
    folder, _ = run_tiny(
        tmp_path / "run", "evaluation=null", "stages.2.grpo.steps=1", "stages.1.dpo.epochs=1"
    )
    summary = read(folder / "summary.json")
    assert summary["gain"] is None and {entry["mean_score"] for entry in summary["stages"]} == {None}
    assert not list(folder.glob("stages/*/eval/heldout.jsonl"))


def test_the_sampler_holds_no_weights_while_a_policy_learns(run_tiny, tmp_path, monkeypatch):
    """In every stage, at every pass; and it had some before, or there would be nothing to give back."""
    engines, had, during = [], [], []

    def loaded(engine: Engine, *args, **kwargs) -> None:
        load(engine, *args, **kwargs)
        engines[:] = [engine]
        had.append(engine._weights is not None)

    def learned(learner: LocalLearner, *args) -> dict:
        during.append(engines[0]._weights)
        return forward_backward(learner, *args)

    load, forward_backward = Engine.load, LocalLearner.forward_backward
    monkeypatch.setattr(Engine, "load", loaded)
    monkeypatch.setattr(LocalLearner, "forward_backward", learned)
    run_tiny(tmp_path / "run", "evaluation=null", "stages.2.grpo.steps=2", "stages.1.dpo.epochs=1")
    assert had and all(had)
    assert len(during) > 4 and not any(during)
