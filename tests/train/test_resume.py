"""Runs that were really killed go on to the very bytes of a run that was not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from posttrain.train.checkpoint import Checkpoints

VARY = ("time/", "throughput/", "memory/")


def metrics_of(stage: Path) -> list[dict]:
    """Every logged number but those of the clock."""
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(VARY)} for line in lines]


def rollouts_of(stage: Path) -> dict[str, list[dict]]:
    return {p.name: parquet.read_table(p).to_pylist() for p in sorted((stage / "rollouts").iterdir())}


def assert_same_stage(one: Path, other: Path) -> None:
    """Weights to the byte; numbers, rollouts and held-out samples equal."""
    model = "model/model.safetensors"
    assert (one / model).read_bytes() == (other / model).read_bytes()
    assert metrics_of(one) == metrics_of(other)
    assert rollouts_of(one) == rollouts_of(other)
    assert sorted((one / "eval/heldout.jsonl").read_text().splitlines()) == sorted(
        (other / "eval/heldout.jsonl").read_text().splitlines()
    )


def equal(one: object, other: object) -> bool:
    """Deep equality of states, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


STAGES = {
    "sft": ("stages.0.sft.batch_rows=7", 0, ()),
    "dpo": ("stages.1.dpo.batch_pairs=7", 1, ()),
    "grpo": ("stages.2.grpo.kl_coefficient=0.05", 2, ("stages.2.grpo.schedule=linear",)),
    "grpo ahead": ("stages.2.grpo.generate_ahead=1", 2, ("stages.2.grpo.schedule=linear",)),
    "grpo refill": ("stages.2.grpo.zero_signal=refill", 2, ("stages.2.grpo.generate_ahead=1",)),
}


def alone(recipe_files: Path, index: int) -> Path:
    """`tiny.yaml` with one of its stages only."""
    import yaml

    recipe = yaml.safe_load((recipe_files / "tiny.yaml").read_text())
    recipe["stages"] = [recipe["stages"][index]]
    kind = next(iter(recipe["stages"][0]))
    path = recipe_files / f"only-{kind}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("case", STAGES)
def test_six_steps_are_six_steps(kill, recipe_files, run_tiny, tmp_path, monkeypatch, case):
    """Killed after step 5, past the checkpoint of step 3, and continued: as if it had never happened.

    Weights, AdamW's moments, the data's order, rollouts and every number that is no time are equal bit by bit.
    Closes T54.
    """
    change, index, more = STAGES[case]
    overrides = [text.replace(f"stages.{index}.", "stages.0.") for text in (change, *more)]
    recipe = alone(recipe_files, index)
    kind = case.split()[0]
    stage = f"01-{kind}"
    monkeypatch.setattr(Checkpoints, "clear", lambda self: None)
    straight, _ = run_tiny(tmp_path / "straight", *overrides, recipe=recipe)
    killed = tmp_path / "killed"
    kill(recipe, [f"output={killed}", *overrides], "after step 5", stage)
    left = [json.loads(line)["step"] for line in (killed / "stages" / stage / "metrics.jsonl").open()]
    assert left == [1, 2, 3, 4, 5]
    assert [p.name for p in (killed / "stages" / stage / "checkpoints").iterdir()] == ["step_000003"]
    assert not (killed / "stages" / stage / "model").exists()
    run_tiny(killed, *overrides, recipe=recipe)
    assert_same_stage(straight / "stages" / stage, killed / "stages" / stage)
    assert len(metrics_of(straight / "stages" / stage)) >= 6
    last = [
        Checkpoints(folder / "stages" / stage / "checkpoints", every=3).load()
        for folder in (straight, killed)
    ]
    assert last[0][0] == last[1][0] == 6
    clockless = [state | {"pending": None} for _, state in last]
    assert equal(*clockless)
    assert len(last[0][1]["learner"]["optimizer"]["state"]) > 10


def test_a_run_killed_everywhere_is_the_same_run(kill, recipe_files, run_tiny, tmp_path):
    """One run, killed six times in three stages: sampling, training, saving, between model and end.

    What comes out in the end is what an undisturbed run gives, and no half-written thing is left.
    Closes T54, T55.
    """
    straight, _ = run_tiny(tmp_path / "straight")
    folder = tmp_path / "killed"
    for moment, stage in (
        ("rollouts written", "01-sft"),
        ("model saved", "01-sft"),
        ("in a checkpoint", "02-dpo"),
        ("evaluated", "02-dpo"),
        ("in a checkpoint", "03-grpo"),
        ("published", "killed"),
    ):
        kill(recipe_files / "tiny.yaml", [f"output={folder}"], moment, stage)
    run_tiny(folder)
    for name in ("01-sft", "02-dpo", "03-grpo"):
        assert_same_stage(straight / "stages" / name, folder / "stages" / name)
        assert not list((folder / "stages" / name).glob("checkpoints/*"))
    model = "model/model.safetensors"
    assert (straight / model).read_bytes() == (folder / model).read_bytes()
    hidden = [p for p in folder.rglob(".*") if p.name != ".gitignore"]
    assert hidden == []
    scores = [json.loads((f / "summary.json").read_text()) for f in (straight, folder)]
    assert scores[0]["stages"] == scores[1]["stages"] and scores[0]["gain"] == scores[1]["gain"]
