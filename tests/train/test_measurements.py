"""Stages that are measured while they train: the lines, the step that is kept, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from posttrain.errors import CheckpointError, DataError, RecipeError
from posttrain.rollout.ahead import Ahead
from posttrain.rollout.engine import Engine
from posttrain.train.measurements import best_step

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
import toy_benchmark

MODEL = "model/model.safetensors"
VARY = ("time/", "throughput/", "memory/")


def lines(path: Path) -> list[dict]:
    """JSON lines without the clock's numbers."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(VARY)} for row in rows]


def problems(path: Path, truths: list[str]) -> dict:
    """Four problems whose right answers are `truths`; training teaches a and b."""
    rows = [
        {
            "id": f"s{i}",
            "messages": [{"role": "user", "content": f"Say {i}."}],
            "ground_truth": truths,
            "dataset": "string",
        }
        for i in range(20, 24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"problems": {"path": str(path)}, "samples_per_problem": 8, "max_new_tokens": 4}


@pytest.fixture
def measured(recipe_files, run_tiny, tmp_path):
    """Runs one stage of `tiny.yaml` alone with these `measure` settings; returns the stage's folder."""

    def go(output: str, measure: dict | None, *overrides: str, which: int | dict = 2, reported=None) -> Path:
        recipe = yaml.safe_load((recipe_files / "tiny.yaml").read_text())
        stage = which if isinstance(which, dict) else recipe["stages"][which]
        kind = next(iter(stage))
        if kind == "ppo":
            stage = {"ppo": stage["ppo"] | {"problems": recipe["stages"][2]["grpo"]["problems"]}}
        recipe["stages"] = [stage if measure is None else stage | {"measure": measure}]
        recipe["evaluation"] = reported
        path = tmp_path / f"{output}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        folder, said = run_tiny(tmp_path / output, *overrides, recipe=path)
        (folder / "said.txt").write_text(said)
        return folder / "stages" / f"01-{kind}"

    return go


def test_the_best_step_by_hand():
    """The highest score; of equals the earliest; the start and what has no score are no candidates."""
    rows = [(0, 0.9), (2, 0.5), (4, 0.75), (6, None), (8, 0.75), (10, 0.25)]
    found = [{"step": step} | ({} if score is None else {"eval/score": score}) for step, score in rows]
    assert best_step(found) == 4
    assert best_step(found[::-1]) == 4
    assert best_step(found[:2]) == 2
    assert best_step(found[:1]) is None


def test_every_due_step_has_its_line_and_its_samples(measured, tmp_path):
    """Every fourth step, the last and the start; each score is the mean of its samples on disk."""
    settings = {"every_steps": 4, "at_start": True, "evaluation": problems(tmp_path / "s.jsonl", ["a", "b"])}
    stage = measured("run", settings)
    rows = lines(stage / "measured.jsonl")
    assert [row["step"] for row in rows] == [0, 4, 6]
    for row in rows:
        samples = lines(stage / f"eval/step_{row['step']:06d}.jsonl")
        assert len(samples) == 4 * 8
        assert row["eval/score"] == pytest.approx(sum(s["value"] for s in samples) / 32)
        assert row["eval/score_low"] <= row["eval/score"] <= row["eval/score_high"]
        assert row["eval/problems"] == 4 and row["eval/score_stderr"] >= 0
        assert row["eval/mean_length_tokens"] == pytest.approx(sum(s["num_tokens"] for s in samples) / 32)
    assert rows[-1]["eval/score"] > rows[0]["eval/score"]
    kept = json.loads((stage / "kept.json").read_text())
    assert (kept["keep"], kept["step"], kept["num_steps"]) == ("last", 6, 6)
    assert [one["step"] for one in kept["candidates"]] == [4, 6]


@pytest.mark.parametrize("ahead", [0, 1])
def test_measuring_changes_nothing_of_the_training(measured, tmp_path, ahead):
    """Weights to the byte and every number that is no time, sampled ahead or not."""
    depth = f"stages.0.grpo.generate_ahead={ahead}"
    plain = measured("plain", None, depth)
    looked = measured(
        "looked", {"every_steps": 2, "evaluation": problems(tmp_path / "s.jsonl", ["a"])}, depth
    )
    assert lines(plain / "metrics.jsonl") == lines(looked / "metrics.jsonl")
    assert (plain / MODEL).read_bytes() == (looked / MODEL).read_bytes()


def test_the_engine_is_measured_with_when_nobody_samples(measured, tmp_path, monkeypatch):
    """Sampled ahead, a thread may hold it: its weights are replaced only after what it samples was waited for."""
    pending, load, events = Ahead.pending, Engine.load, []
    monkeypatch.setattr(Ahead, "pending", lambda self: [events.append("waited"), pending(self)][1])
    monkeypatch.setattr(
        Engine,
        "load",
        lambda self, weights, *, version: [events.append(version), load(self, weights, version=version)][1],
    )
    settings = {"every_steps": 2, "evaluation": problems(tmp_path / "s.jsonl", ["a"])}
    measured("run", settings, "stages.0.grpo.generate_ahead=1", "stages.0.grpo.save_every_steps=null")
    for step in (2, 4, 6):  # a step's own rollouts are sampled with its weights only afterwards
        assert events[events.index(step) - 1] == "waited"


def test_the_last_measurement_is_what_the_finished_stage_is_reported_with(measured, tmp_path):
    """The same problems, settings and seed give the same samples: of the start, and of the weights of the end."""
    evaluation = problems(tmp_path / "s.jsonl", ["a", "b"])
    settings = {"every_steps": 3, "at_start": True, "evaluation": evaluation}
    stage = measured("run", settings, reported=evaluation)

    def answers(path: Path) -> set[str]:
        return set(path.read_text().splitlines())

    start, half, end = (answers(stage / f"eval/step_{step:06d}.jsonl") for step in (0, 3, 6))
    assert start == answers(stage.parent / "00-base/eval/heldout.jsonl")
    assert end == answers(stage / "eval/heldout.jsonl")
    assert start != half != end


def test_samples_without_a_line_are_not_trusted(measured, tmp_path):
    """They may be of weights that a killed run had and this one has not."""
    evaluation = problems(tmp_path / "s.jsonl", ["a", "b"])
    stale = tmp_path / "run/stages/01-grpo/eval/step_000006.jsonl"
    stale.parent.mkdir(parents=True)
    rows = [{"problem_id": f"s{i}", "sample": j, "value": 0.125} for i in range(20, 24) for j in range(8)]
    stale.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = measured("run", {"times": 1, "evaluation": evaluation})
    assert {sample["value"] for sample in lines(stage / "eval/step_000006.jsonl")} <= {0.0, 1.0}
    assert len(lines(stage / "eval/step_000006.jsonl")) == 32


def test_the_best_step_is_the_result(measured, tmp_path):
    """Training towards a and b makes c and d rarer, so an early step is best: a stage of so many steps ends there."""
    settings = {
        "every_steps": 2,
        "keep": "best",
        "evaluation": problems(tmp_path / "s.jsonl", ["c", "d"]),
    }
    stage = measured("run", settings)
    scores = {row["step"]: row["eval/score"] for row in lines(stage / "measured.jsonl")}
    kept = json.loads((stage / "kept.json").read_text())
    assert scores[2] > scores[6]
    assert kept["step"] == min(scores, key=lambda step: (-scores[step], step)) < 6
    assert kept["score"] == scores[kept["step"]]
    assert {one["step"]: one["score"] for one in kept["candidates"]} == scores
    short = measured("short", None, f"stages.0.grpo.steps={kept['step']}")
    long = measured("long", None)
    assert (stage / MODEL).read_bytes() == (short / MODEL).read_bytes() != (long / MODEL).read_bytes()
    assert not (stage / "kept").exists() and not list((stage / "checkpoints").glob("*"))
    assert f"01-grpo: its result is step {kept['step']} of 6" in (stage.parents[1] / "said.txt").read_text()
    record = json.loads((stage / "model/posttrain.json").read_text())
    assert record["metadata"]["step"] == kept["step"]
    assert (stage.parents[1] / MODEL).read_bytes() == (stage / MODEL).read_bytes()


PPO = {
    "ppo": {
        "steps": 4,
        "prompts_per_step": 4,
        "samples_per_prompt": 2,
        "max_new_tokens": 4,
        "value_start": "policy",
        "schedule": "constant",
        "learning_rate": 1e-3,
        "max_logprob_difference_nats": None,
    }
}
SAME = {
    "sft": (0, ["stages.0.sft.schedule=constant"], "stages.0.sft.epochs=1"),
    "dpo": (
        1,
        ["stages.0.dpo.schedule=constant", "stages.0.dpo.warmup_fraction=0.0"],
        "stages.0.dpo.epochs=1",
    ),
    "ppo": (PPO, [], "stages.0.ppo.steps=2"),
    "adapters": (2, ["lora.rank=2"], "stages.0.grpo.steps=2"),
}


@pytest.mark.parametrize("case", SAME)
def test_a_step_by_its_number_is_kept_in_every_kind_of_stage(measured, case):
    """As if the stage had ended there, adapters too."""
    which, both, short = SAME[case]
    ended = measured("short", None, *both, short, which=which)
    step = lines(ended / "metrics.jsonl")[-1]["step"]
    kept = measured("kept", {"keep": step}, *both, which=which)
    assert lines(kept / "metrics.jsonl")[-1]["step"] > step
    assert (kept / MODEL).read_bytes() == (ended / MODEL).read_bytes()
    if case == "adapters":
        adapter = "adapter/adapter_model.safetensors"
        assert (kept / adapter).read_bytes() == (ended / adapter).read_bytes()
    assert not (kept / "measured.jsonl").exists() and not (kept / "kept").exists()


def test_a_step_that_is_not_there_is_refused(measured):
    """Only the data says how many steps supervised stages have."""
    with pytest.raises(RecipeError, match=r"measure\.keep is 500, and 01-sft has only \d+ steps"):
        measured("run", {"keep": 500}, which=0)


def test_other_measurements_are_another_stage(measured, tmp_path):
    """Which step is the result depends on them, so they are in the stage's key; where the data lies is not."""
    settings = {"times": 1, "evaluation": problems(tmp_path / "s.jsonl", ["a"])}
    measured("run", settings)
    with pytest.raises(CheckpointError, match="01-grpo holds a stage with other settings"):
        measured("run", settings | {"times": 2})


def test_no_problem_left_is_refused_before_anything_is_trained(measured, tmp_path):
    evaluation = problems(tmp_path / "s.jsonl", ["a"]) | {"skip_problems": 4}
    with pytest.raises(
        DataError, match=r"has 4 problems, and measure.evaluation.skip_problems is 4; lower it"
    ):
        measured("run", {"times": 1, "evaluation": evaluation})
    assert list((tmp_path / "run" / "stages").iterdir()) == []


def test_lost_weights_of_the_best_step_are_missed_at_once(measured, tmp_path):
    """Not at the stage's end, hours later."""
    settings = {"every_steps": 2, "keep": "best", "evaluation": problems(tmp_path / "s.jsonl", ["c"])}
    stage = measured("run", settings)
    for name in ("model/model.safetensors", "done.json"):
        (stage / name).unlink()
    (stage / "model").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"the weights of step \d, the best so far, are not in .*kept"):
        measured("run", settings)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy benchmark's data, and its names in the registry."""
    from posttrain.evaluation import registry

    monkeypatch.setattr(registry, "TASKS", dict(registry.TASKS))
    toy_benchmark.install()
    monkeypatch.setenv("POSTTRAIN_DATA", str(toy_benchmark.write_data(tmp_path / "data")))
    return tmp_path / "data"


def test_benchmarks_are_run_by_the_sampling_engine(measured, toy):
    """The line has what the outputs on disk score: a share of outputs of even length, over five documents of eight."""
    stage = measured("run", {"times": 2, "benchmarks": {"tasks": ["toy"], "limit": 5}})
    rows = lines(stage / "measured.jsonl")
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        folder = stage / f"eval/step_{row['step']:06d}" / "toy"
        outputs = [json.loads(line)["output"] for line in (folder / "outputs.jsonl").open()]
        assert len(outputs) == 5 * 2
        even = sum(len(output) % 2 == 0 for output in outputs) / 10
        assert row["benchmark/toy_percent"] == pytest.approx(100 * even)
        assert row["benchmark/toy_stderr"] >= 0 and row["benchmark/toy_documents"] == 5
        result = json.loads((folder / "result.json").read_text())
        assert result["n"] == 5 and result["model"]["step"] == row["step"]


@pytest.mark.parametrize(
    ("benchmarks", "error", "sentence"),
    [
        ({"tasks": ["judged"]}, RecipeError, "has judged, which needs a judge; leave it out here"),
        ({"tasks": ["truthfulqa"]}, RecipeError, "has truthfulqa, which needs log-probabilities"),
        ({"tasks": ["toy"], "data": "/nowhere"}, DataError, "toy"),
    ],
)
def test_what_an_engine_cannot_run_is_refused_before_anything_is_trained(
    measured, toy, tmp_path, benchmarks, error, sentence
):
    with pytest.raises(error, match=sentence):
        measured("run", {"times": 2, "benchmarks": benchmarks})
    assert list((tmp_path / "run" / "stages").iterdir()) == []


def test_data_that_is_nowhere_is_missed_at_once(measured, toy, monkeypatch):
    monkeypatch.delenv("POSTTRAIN_DATA")
    with pytest.raises(DataError, match=r"toy needs toy/test\.jsonl, and no hub data set is known for it"):
        measured("run", {"times": 2, "benchmarks": {"tasks": ["toy"]}})
