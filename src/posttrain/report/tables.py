"""Rows of the report: examples before and after, best and worst rollouts, data counts, time."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report.record import RunRecord, Sample, StageRecord
from posttrain.report.wording import compact, count, plain


@dataclass(frozen=True, slots=True)
class Example:
    """One problem answered by the first and by the last evaluated stage."""

    title: str
    problem_id: str
    kind: str
    prompt: str
    before: Sample
    after: Sample


@dataclass(frozen=True, slots=True)
class Extremes:
    """A stage's best and worst rollouts of its newest rollout file, each of another problem."""

    stage: str
    step: int | None
    num_rollouts: int
    best: tuple[Mapping[str, Any], ...]
    worst: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class DataRow:
    """What one stage was trained on. `sources` is (name, note); `dropped` is (reason, rows, share)."""

    stage: str
    rows: int
    tokens: int
    targets: int
    sources: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, int, float], ...]
    examples: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TimeRow:
    """Where one stage's time went; shares are percent of the run, parts are percent of its steps."""

    stage: str
    seconds: float
    share: float
    num_steps: int
    step_seconds: float | None
    tokens_per_second: float | None
    peak_rss_gib: float | None
    parts: tuple[tuple[str, float], ...]


def pick_examples(before: Sequence[Sample], after: Sequence[Sample]) -> list[Example]:
    """Three problems learned, two lost and one still wrong, chosen by a hash of their id, not by hand."""
    old = {sample.problem_id: sample for sample in before if sample.sample == 0}
    new = {sample.problem_id: sample for sample in after if sample.sample == 0}
    shared = sorted(old.keys() & new.keys(), key=_shuffle_key)
    wanted: tuple[tuple[str, int, Callable[[Sample, Sample], bool]], ...] = (
        ("Learned", 3, lambda a, b: b.value > a.value),
        ("Lost", 2, lambda a, b: b.value < a.value),
        ("Still wrong", 1, lambda a, b: a.value == b.value and b.verdict != "correct"),
    )
    examples: list[Example] = []
    for title, number, fits in wanted:
        fitting = [problem for problem in shared if fits(old[problem], new[problem])]
        for problem in _varied(fitting, lambda problem: old[problem].kind)[:number]:
            sample = old[problem]
            prompt = plain(sample.prompt)
            examples.append(Example(title, problem, sample.kind, prompt, sample, new[problem]))
    return examples


def pick_extremes(stage: StageRecord, number: int = 3) -> Extremes | None:
    """The rollouts with the highest and the lowest reward; None when the stage has none."""
    rows = [row for row in stage.rollouts if isinstance(row.get("reward"), float | int)]
    if not rows:
        return None
    # Equal rewards: the larger advantage is the rarer success, the smaller one the rarer failure.
    ranked = sorted(rows, key=lambda row: (row["reward"], row.get("advantage") or 0.0))
    best = _distinct(reversed(ranked), number)
    taken = {id(row) for row in best}
    worst = _distinct((row for row in ranked if id(row) not in taken), number)
    step = rows[0].get("step")
    return Extremes(
        stage.label, step if isinstance(step, int) else None, len(rows), tuple(best), tuple(worst)
    )


def data_rows(run: RunRecord) -> list[DataRow]:
    """One row per stage that read data."""
    table = []
    for stage in run.stages:
        data = stage.data
        if data is None:
            continue
        dropped = {str(reason): int(number) for reason, number in (data.get("dropped") or {}).items()}
        rows = int(data.get("rows") or 0)
        total = rows + sum(dropped.values())
        ordered = sorted(dropped.items(), key=lambda item: -item[1])
        table.append(
            DataRow(
                stage=stage.label,
                rows=rows,
                tokens=int(data.get("tokens") or 0),
                targets=int(data.get("targets") or 0),
                sources=tuple(_source(source) for source in data.get("sources") or ()),
                dropped=tuple((reason, number, number / total) for reason, number in ordered if number),
                examples=tuple(plain(example, 400) for example in data.get("examples") or ()),
                notes=tuple(plain(note) for note in data.get("notes") or ()),
            )
        )
    return table


def time_rows(run: RunRecord) -> list[TimeRow]:
    """One row per stage; an unfinished one counts the steps it made so far."""
    spent = [_seconds(stage) for stage in run.stages]
    total = math.fsum(spent) or 1.0
    return [
        TimeRow(
            stage=stage.label,
            seconds=seconds,
            share=100 * seconds / total,
            num_steps=len(stage.metrics),
            step_seconds=_median(stage, "time/step_seconds"),
            tokens_per_second=_median(stage, "throughput/tokens_per_second"),
            peak_rss_gib=(stage.done or {}).get("peak_rss_gib"),
            parts=_parts(stage),
        )
        for stage, seconds in zip(run.stages, spent, strict=True)
    ]


def fact_rows(run: RunRecord) -> list[tuple[str, str]]:
    """What the run was made with, from its manifest."""
    manifest = run.manifest
    machine, git, model = (manifest.get(key) or {} for key in ("machine", "git", "model"))
    commit = f"{git.get('commit')}{' with local changes' if git.get('dirty') else ''}" if git else ""
    memory = f"{machine['ram_gib']:g} GiB" if isinstance(machine.get("ram_gib"), int | float) else ""
    facts = [
        ("Started", manifest.get("created")),
        ("Finished", manifest.get("finished")),
        ("Model", model.get("name")),
        ("Model source", model.get("source")),
        ("Model sha256", model.get("sha256")),
        ("Recipe hash", manifest.get("recipe_hash")),
        ("Seed", manifest.get("seed")),
        ("Source commit", commit),
        ("Processor", machine.get("cpu")),
        ("Cores", machine.get("cores")),
        ("Memory", memory),
        ("Device", machine.get("device")),
        ("Compute dtype", machine.get("dtype")),
        *(manifest.get("versions") or {}).items(),
    ]
    return [(name, plain(value, 400)) for name, value in facts if value not in (None, "")]


def spell_parts(row: Mapping[str, Any]) -> str:
    """The verifier's part scores of a rollout, `format 1, answer 0`; empty when there are none."""
    try:
        parts = json.loads(row.get("parts") or "{}")
    except ValueError:
        return ""
    return ", ".join(f"{name} {compact(float(value))}" for name, value in parts.items())


def _source(source: Mapping[str, Any]) -> tuple[str, str]:
    """A source's name, and its rows, hash and licence in words."""
    used, read = source.get("rows_used"), source.get("rows_read")
    parts = [f"{count(used, 'row')} of {count(read, 'row')}" if read is not None else ""]
    parts.append(f"sha256 {str(source['sha256'])[:12]}" if source.get("sha256") else "")
    parts.append(str(source.get("licence") or ""))
    return plain(source.get("name") or "unnamed", 200), plain(", ".join(filter(None, parts)), 200)


def _shuffle_key(problem: str) -> str:
    return hashlib.sha256(problem.encode("utf-8", "replace")).hexdigest()


def _varied(problems: Sequence[str], kind_of: Callable[[str], str]) -> list[str]:
    """The same problems, the first of each kind before the second of any."""
    seen: dict[str, int] = {}
    rank: dict[str, int] = {}
    for problem in problems:
        rank[problem] = seen[kind_of(problem)] = seen.get(kind_of(problem), 0) + 1
    return sorted(problems, key=rank.__getitem__)


def _distinct(rows: Any, number: int) -> list[Mapping[str, Any]]:
    """The first `number` rows of different problems."""
    chosen: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        chosen.setdefault(row.get("problem_id"), row)
        if len(chosen) == number:
            break
    return list(chosen.values())


def _seconds(stage: StageRecord) -> float:
    if stage.done is not None:
        return float(stage.done.get("seconds") or 0.0)
    return math.fsum(float(row.get("time/step_seconds") or 0.0) for row in stage.metrics)


def _median(stage: StageRecord, name: str) -> float | None:
    values = [row[name] for row in stage.metrics if row.get(name) is not None]
    return statistics.median(values) if values else None


def _parts(stage: StageRecord) -> tuple[tuple[str, float], ...]:
    """Percent of the step time spent in each logged part."""
    sums = {
        part: math.fsum(float(row.get(f"time/{part}_seconds") or 0.0) for row in stage.metrics)
        for part in ("generate", "verify", "train")
    }
    total = math.fsum(float(row.get("time/step_seconds") or 0.0) for row in stage.metrics)
    return tuple((part, 100 * spent / total) for part, spent in sums.items() if spent and total)
