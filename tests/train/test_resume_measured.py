"""Stages that were killed while they were measured end with the curves and the weights of those that were not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

STAGE = "01-grpo"
MODEL = "model/model.safetensors"
VARY = ("time/", "throughput/", "memory/")


@pytest.fixture
def make_recipe(recipe_files, tmp_path):
    """Makes GRPO alone, measured at steps 2, 4 and 6 on problems whose right answers are `truths`.

    Training teaches a and b: with c and d an early step is best, with a and b a later one is better.
    """

    def make(truths: str) -> Path:
        recipe = yaml.safe_load((recipe_files / "tiny.yaml").read_text())
        heldout = Path(recipe["evaluation"]["problems"]["path"]).read_text()
        rows = [json.loads(line) | {"ground_truth": list(truths)} for line in heldout.splitlines()]
        chosen = tmp_path / "chosen.jsonl"
        chosen.write_text("".join(json.dumps(row) + "\n" for row in rows))
        evaluation = {"problems": {"path": str(chosen)}, "samples_per_problem": 32, "max_new_tokens": 4}
        measure = {"every_steps": 2, "evaluation": evaluation, "keep": "best"}
        recipe["stages"] = [recipe["stages"][2] | {"measure": measure}]
        path = tmp_path / "measured.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return make


def lines(path: Path) -> list[dict]:
    """Every number but those of the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(VARY)} for row in rows]


def curves(stage: Path) -> list[dict]:
    return lines(stage / "measured.jsonl")


KILLS = {
    "past a measurement, before its checkpoint": [("after step 5", STAGE)],
    "answering": [("in a measurement", "")],
    "writing the weights": [("in a checkpoint", f"{STAGE}/kept/.step_000002")],
    "between weights and line": [("before its line", f"{STAGE}/measured.jsonl), 2")],
    "writing better weights": [("in a checkpoint", f"{STAGE}/kept/.step_000004")],
    "between better weights and their line": [("before its line", f"{STAGE}/measured.jsonl), 4")],
    "chosen, before the model is whole": [("model saved", STAGE)],
    "again and again": [
        ("before its line", f"{STAGE}/measured.jsonl), 2"),
        ("in a checkpoint", f"{STAGE}/checkpoints"),
        ("after step 5", STAGE),
        ("model saved", STAGE),
    ],
}


@pytest.mark.parametrize(("case", "ahead"), [(case, place % 2) for place, case in enumerate(KILLS)])
def test_a_killed_stage_has_the_same_curves_and_result(kill, make_recipe, run_tiny, tmp_path, case, ahead):
    """Scores, candidates, the kept step and its weights to the byte; nothing half-written or needless is left.

    Closes T54.
    """
    rises = "better" in case
    recipe = make_recipe("ab" if rises else "cd")
    settings = [f"stages.0.grpo.generate_ahead={ahead}", "evaluation.problems.name=reported"]
    if case == "answering":
        settings.append("evaluation=null")  # its killer counts the problems that are answered
    straight, _ = run_tiny(tmp_path / "straight", *settings, recipe=recipe)
    killed = tmp_path / "killed"
    for moment, place in KILLS[case]:
        kill(recipe, [f"output={killed}", *settings], moment, place)
    run_tiny(killed, *settings, recipe=recipe)
    one, other = straight / "stages" / STAGE, killed / "stages" / STAGE
    assert (one / MODEL).read_bytes() == (other / MODEL).read_bytes()
    assert lines(one / "metrics.jsonl") == lines(other / "metrics.jsonl")
    assert curves(one) == curves(other)
    assert [row["step"] for row in curves(other)] == [2, 4, 6]
    kept = json.loads((other / "kept.json").read_text())
    assert kept == json.loads((one / "kept.json").read_text())
    scores = [row["eval/score"] for row in curves(one)]
    assert scores[1] > scores[0] if rises else kept["step"] < 6
    for step in (2, 4, 6):
        samples = f"eval/step_{step:06d}.jsonl"
        assert sorted((one / samples).read_text().splitlines()) == sorted(
            (other / samples).read_text().splitlines()
        )
    assert not (other / "kept").exists()
    assert [p for p in killed.rglob(".*") if p.name != ".gitignore"] == []


def test_a_measured_step_is_not_measured_again(kill, make_recipe, run_tiny, tmp_path):
    """Killed after step 5, past the checkpoint of step 3: step 4 is trained again, its samples stay untouched."""
    folder, recipe = tmp_path / "killed", make_recipe("cd")
    kill(recipe, [f"output={folder}"], "after step 5", STAGE)
    stage = folder / "stages" / STAGE
    assert [row["step"] for row in curves(stage)] == [2, 4]
    assert [p.name for p in (stage / "checkpoints").iterdir()] == ["step_000003"]
    before = {p.name: p.stat().st_mtime_ns for p in (stage / "eval").glob("step_*.jsonl")}
    assert before.keys() == {"step_000002.jsonl", "step_000004.jsonl"}
    first = (stage / "measured.jsonl").read_text()
    run_tiny(folder, recipe=recipe)
    after = {p.name: p.stat().st_mtime_ns for p in (stage / "eval").glob("step_*.jsonl")}
    assert {name: after[name] for name in before} == before
    assert (stage / "measured.jsonl").read_text().startswith(first)
