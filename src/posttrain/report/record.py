"""A run folder, read back: everything there is, and a sentence for everything that is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

from posttrain.errors import CheckpointError
from posttrain.train.folder import RunFolder, StageFolder, read_json
from posttrain.train.metrics import read_metrics

_ROLLOUT_COLUMNS = (
    "step",
    "problem_id",
    "sample",
    "prompt",
    "completion",
    "stop_reason",
    "reward",
    "value",
    "verdict",
    "reason",
    "advantage",
    "parts",
    "verifier",
    "ground_truth",
)
_LABELS = {
    "base": "Base model",
    "sft": "SFT",
    "dpo": "DPO",
    "reward_model": "Reward model",
    "ppo": "PPO",
    "grpo": "GRPO",
}
TRAINED = ("sft", "dpo", "reward_model", "ppo", "grpo")
"""Kinds of stages that log metrics."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One evaluated completion, a line of `heldout.jsonl`."""

    problem_id: str
    sample: int
    kind: str
    prompt: str
    output: str
    num_tokens: int
    stop_reason: str
    value: float
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage's files; what has not been written yet is empty or None."""

    name: str
    kind: str
    label: str = ""
    """What the page calls it: `SFT` for `01-sft`, or its own name where that would be ambiguous."""
    done: Mapping[str, Any] | None = None
    metrics: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] | None = None
    samples: tuple[Sample, ...] = ()
    rollouts: tuple[Mapping[str, Any], ...] = ()
    """Rows of the newest rollout file."""
    measured: tuple[Mapping[str, Any], ...] = ()
    """Lines of `measured.jsonl`, by step."""
    kept: Mapping[str, Any] | None = None
    """What `kept.json` says of the step that is the stage's result."""
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    """Name -> title of the benchmarks that were run while it trained."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The recipe's table of the stage."""

    @property
    def episodes_per_step(self) -> int | None:
        """Completions sampled for each rollout step; None for a stage that samples none."""
        settings = self.recipe.get(self.kind)
        if not isinstance(settings, dict):
            return None
        prompts, samples = settings.get("prompts_per_step"), settings.get("samples_per_prompt")
        return prompts * samples if isinstance(prompts, int) and isinstance(samples, int) else None

    @property
    def keep(self) -> Any:
        """Which step the recipe makes the stage's result."""
        measure = self.recipe.get("measure")
        return measure.get("keep") if isinstance(measure, dict) else None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run. `gaps` says in sentences what is missing or unreadable."""

    name: str
    manifest: Mapping[str, Any]
    recipe: str
    stages: tuple[StageRecord, ...]
    gaps: tuple[str, ...] = field(default=())


def read_run(root: Path) -> RunRecord:
    """Read the run in `root`, finished or not. CheckpointError when it is no run folder at all."""
    run = RunFolder(root)
    if not run.manifest.is_file() and not run.stages.is_dir():
        raise CheckpointError(
            f"{root} is not a run folder (it has neither manifest.json nor stages/); "
            "pass the folder that `posttrain run` named"
        )
    gaps: list[str] = []
    manifest = _object(run.manifest, gaps) or {}
    planned = {stage.get("name"): stage.get("kind") for stage in manifest.get("stages") or []}
    folders = sorted(path for path in run.stages.glob("*") if path.is_dir()) if run.stages.is_dir() else []
    shorts = [_short(path.name) for path in folders]
    labels = [
        _LABELS.get(short, short) if shorts.count(short) == 1 else path.name
        for path, short in zip(folders, shorts, strict=True)
    ]
    recipe = run.recipe.read_text(encoding="utf-8", errors="replace") if run.recipe.is_file() else ""
    tables = _stage_tables(recipe)
    stages = tuple(
        _read_stage(StageFolder(path), label, planned, tables.get(path.name.partition("-")[0], {}), gaps)
        for path, label in zip(folders, labels, strict=True)
    )
    started = {stage.name for stage in stages} | {_short(stage.name) for stage in stages}
    gaps += [
        f"{_LABELS.get(_short(name), name)} has not started"
        for name in planned
        if name and name not in started
    ]
    return RunRecord(str(manifest.get("name") or root.name), manifest, recipe, stages, tuple(gaps))


def _short(name: str) -> str:
    """`01-sft` without its number."""
    number, _, rest = name.partition("-")
    return rest if number.isdigit() and rest else name


def _stage_tables(recipe: str) -> dict[str, Mapping[str, Any]]:
    """Number of a stage's folder -> its table in the recipe's text; none where that is no recipe."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return {}
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, list):
        return {}
    return {f"{n:02d}": table for n, table in enumerate(stages, start=1) if isinstance(table, dict)}


def _read_stage(
    folder: StageFolder,
    label: str,
    planned: Mapping[Any, Any],
    recipe: Mapping[str, Any],
    gaps: list[str],
) -> StageRecord:
    name, short = folder.name, _short(folder.name)
    done = _object(folder.done, gaps) if folder.done.is_file() else None
    if done is None:
        gaps.append(f"{label} is not finished")
        # A finished stage without an evaluation is one whose recipe asks for none.
        if not folder.heldout.is_file() and planned.get(name) != "reward_model":
            gaps.append(f"{label} has no held-out evaluation yet")
    metrics, measured = _read_lines(folder.metrics, gaps), _read_lines(folder.measured, gaps)
    kind = str(planned.get(name) or planned.get(short) or short)
    if not metrics and kind in TRAINED:
        gaps.append(f"{label} has no metrics yet")
    return StageRecord(
        name=name,
        kind=kind,
        label=label,
        done=done,
        metrics=metrics,
        data=_object(folder.data, gaps) if folder.data.is_file() else None,
        samples=_read_samples(folder.heldout, label, gaps),
        rollouts=_read_rollouts(folder.rollouts, label, gaps),
        measured=measured,
        kept=_object(folder.kept, gaps) if folder.kept.is_file() else None,
        benchmarks=_titles(folder, measured),
        recipe=recipe,
    )


def _read_lines(path: Path, gaps: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(read_metrics(path))
    except CheckpointError as error:
        gaps.append(str(error))
        return ()


def _titles(folder: StageFolder, measured: tuple[Mapping[str, Any], ...]) -> dict[str, str]:
    """Titles as the benchmarks' results have them, else their names."""
    found: dict[str, str] = {}
    for row in measured:
        for key in row:
            name = key.removeprefix("benchmark/").removesuffix("_percent")
            if key != f"benchmark/{name}_percent" or name in found:
                continue
            result = _object(folder.benchmarks_at(row["step"]) / name / "result.json", []) or {}
            found[name] = str(result.get("title") or name)
    return found


def _object(path: Path, gaps: list[str]) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except CheckpointError as error:
        gaps.append(str(error))
        return None


def _read_samples(path: Path, stage: str, gaps: list[str]) -> tuple[Sample, ...]:
    if not path.is_file():
        return ()
    samples: list[Sample] = []
    damaged = 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            samples.append(_sample(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        gaps.append(f"{stage}: {damaged} damaged line{'s' if damaged > 1 else ''} of {path.name} left out")
    return tuple(samples)


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        problem_id=str(row["problem_id"]),
        sample=int(row["sample"]),
        kind=str(row.get("kind") or "all"),
        prompt=str(row["prompt"]),
        output=str(row["output"]),
        num_tokens=int(row["num_tokens"]),
        stop_reason=str(row["stop_reason"]),
        value=float(row["value"]),
        verdict=str(row["verdict"]),
        reason=str(row.get("reason") or ""),
    )


def _read_rollouts(folder: Path, stage: str, gaps: list[str]) -> tuple[Mapping[str, Any], ...]:
    """The newest file that can be read; the one being written when a run was killed cannot."""
    for path in sorted(folder.glob("*.parquet"), reverse=True):
        try:
            names = parquet.read_schema(path).names
            columns = [column for column in _ROLLOUT_COLUMNS if column in names]
            rows = parquet.read_table(path, columns=columns).to_pylist()
            return tuple({**dict.fromkeys(_ROLLOUT_COLUMNS), **row} for row in rows)
        except (pa.ArrowException, OSError):
            gaps.append(f"{stage}: {path.name} cannot be read and was left out")
    return ()
