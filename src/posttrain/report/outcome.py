"""What a run achieved: a score per stage, paired gains, and the sentence on top of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.evaluation.statistics import (
    Estimate,
    Paired,
    by_problem,
    estimate,
    minimal_detectable_difference,
    paired_difference,
)
from posttrain.report.kept import kept_of
from posttrain.report.record import RunRecord, Sample, StageRecord, read_run
from posttrain.report.wording import bracket, percent, points
from posttrain.train.folder import RunFolder, write_json


@dataclass(frozen=True, slots=True)
class StageScore:
    """A stage's held-out result; `gain` is against the evaluated stage before it."""

    name: str
    label: str
    estimate: Estimate | None = None
    previous: str = ""
    gain: Paired | None = None
    stop_rate: float = math.nan
    mean_tokens: float = math.nan
    unparseable_rate: float = math.nan


@dataclass(frozen=True, slots=True)
class KindScore:
    """Base and final score on one kind of task."""

    kind: str
    base: Estimate
    final: Estimate


@dataclass(frozen=True, slots=True)
class Outcome:
    """All scores of a run. `first` and `last` are its first and last evaluated stages."""

    scores: tuple[StageScore, ...]
    kinds: tuple[KindScore, ...]
    first: StageScore | None
    last: StageScore | None
    gain: Paired | None
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The outcome in one sentence, with its uncertainty."""
        if self.first is None or self.first.estimate is None:
            return "No held-out score yet."
        if self.gain is None:
            return f"{self.first.label} scores {percent(self.first.estimate.mean)} on the held-out problems."
        move = f"Held-out score {percent(self.gain.before)} → {percent(self.gain.after)}"
        interval = f"{points(self.gain.difference)} points, 95 % CI {bracket(self.gain.low, self.gain.high)}"
        if self.gain.is_better:
            return f"{move}: gain {interval}."
        if self.gain.is_worse:
            return f"{move}: significantly worse, {interval}."
        return f"{move}: no clear change, {interval}."

    @property
    def warnings(self) -> list[str]:
        """A sentence for every stage that made the model significantly worse."""
        return [
            f"{score.label} is significantly worse than {score.previous}: "
            f"{points(score.gain.difference)} points, 95 % CI {bracket(score.gain.low, score.gain.high)}"
            for score in self.scores
            if score.gain is not None and score.gain.is_worse
        ]

    @property
    def detectable(self) -> float | None:
        """Smallest true gain this evaluation would find four times out of five, as a fraction."""
        return None if self.gain is None else minimal_detectable_difference(self.gain.stderr)


def measure(run: RunRecord) -> Outcome:
    """Score every stage of `run` and compare them, problem by problem."""
    notes: list[str] = []
    scores: list[StageScore] = []
    evaluated: list[StageRecord] = []
    for stage in run.stages:
        if not stage.samples:
            scores.append(StageScore(stage.name, stage.label))
            continue
        before = evaluated[-1] if evaluated else None
        scores.append(_score(stage, before, notes))
        evaluated.append(stage)
    named = {score.name: score for score in scores}
    gain: Paired | None = None
    kinds: tuple[KindScore, ...] = ()
    if len(evaluated) > 1:
        gain = _compare(evaluated[0], evaluated[-1], notes)
        kinds = _kinds(evaluated[0].samples, evaluated[-1].samples)
    return Outcome(
        scores=tuple(scores),
        kinds=kinds,
        first=named[evaluated[0].name] if evaluated else None,
        last=named[evaluated[-1].name] if evaluated else None,
        gain=gain,
        notes=tuple(dict.fromkeys(notes)),
    )


def summarise(run: RunRecord, outcome: Outcome) -> dict[str, Any]:
    """The content of `summary.json`; scores are fractions, and null where a stage was not evaluated.

    A stage that was measured while it trained has `kept`: which step is its result, of which candidates.
    """
    done = [stage.done for stage in run.stages if stage.done is not None]
    gain = outcome.gain
    kept = {
        stage.name: {"kept": {**stage.kept, "episode": found.episode}}
        for stage in run.stages
        if stage.kept is not None and (found := kept_of(stage)) is not None
    }
    return {
        "seconds": round(sum(_number(entry, "seconds") for entry in done), 3),
        "peak_rss_gib": max((_number(entry, "peak_rss_gib") for entry in done), default=0.0),
        "stages": [
            {
                "name": score.name,
                "mean_score": _json_number(score.estimate.mean if score.estimate else math.nan),
                "stderr": _json_number(score.estimate.stderr if score.estimate else math.nan),
                **kept.get(score.name, {}),
            }
            for score in outcome.scores
        ],
        "gain": None if gain is None else {"value": gain.difference, "ci95": [gain.low, gain.high]},
    }


def write_summary(run: Path) -> dict[str, Any]:
    """Write `summary.json` of the run folder `run`, and return it."""
    record = read_run(run)
    summary = summarise(record, measure(record))
    write_json(RunFolder(run).summary, summary)
    return summary


def score_samples(samples: Sequence[Sample]) -> Estimate:
    """Mean value of `samples`, clustered by problem."""
    return estimate([sample.value for sample in samples], [sample.problem_id for sample in samples])


def _score(stage: StageRecord, before: StageRecord | None, notes: list[str]) -> StageScore:
    samples, count = stage.samples, len(stage.samples)
    return StageScore(
        name=stage.name,
        label=stage.label,
        estimate=score_samples(samples),
        previous=before.label if before else "",
        gain=_compare(before, stage, notes) if before else None,
        stop_rate=sum(sample.stop_reason == "stop" for sample in samples) / count,
        mean_tokens=sum(sample.num_tokens for sample in samples) / count,
        unparseable_rate=sum(sample.verdict == "unparseable" for sample in samples) / count,
    )


def _compare(before: StageRecord, after: StageRecord, notes: list[str]) -> Paired | None:
    """Paired difference over the problems that both answered; a note says when those are not all."""
    old, new = _means(before.samples), _means(after.samples)
    shared = [problem for problem in old if problem in new]
    if len(shared) < 2:
        notes.append(f"{before.label} and {after.label} share too few held-out problems to be compared")
        return None
    if len(shared) < max(len(old), len(new)):
        notes.append(
            f"{before.label} and {after.label} are compared on the {len(shared):,} problems both answered "
            f"(of {len(old):,} and {len(new):,})"
        )
    return paired_difference({key: old[key] for key in shared}, {key: new[key] for key in shared})


def _means(samples: Sequence[Sample]) -> dict[str, float]:
    return by_problem([sample.problem_id for sample in samples], [sample.value for sample in samples])


def _kinds(base: Sequence[Sample], final: Sequence[Sample]) -> tuple[KindScore, ...]:
    """Kinds that both evaluations hold, largest gain first; none when there is only one kind."""
    kinds = {sample.kind for sample in base} & {sample.kind for sample in final}
    if len(kinds) < 2:
        return ()
    pairs = [
        KindScore(
            kind,
            score_samples([sample for sample in base if sample.kind == kind]),
            score_samples([sample for sample in final if sample.kind == kind]),
        )
        for kind in sorted(kinds)
    ]
    return tuple(sorted(pairs, key=lambda pair: pair.base.mean - pair.final.mean))


def _number(entry: Mapping[str, Any], name: str) -> float:
    return float(entry.get(name) or 0.0)


def _json_number(value: float) -> float | None:
    return None if math.isnan(value) else value
