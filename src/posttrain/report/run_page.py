"""The run report: one HTML file without scripts or requests, made from a run folder, finished or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

import posttrain
from posttrain.evaluation.statistics import Estimate
from posttrain.report import tables
from posttrain.report.card_parts import label_of
from posttrain.report.curves import draw_stage, nice_ticks
from posttrain.report.kept import kept_of
from posttrain.report.measured_curves import draw_measured
from posttrain.report.outcome import Outcome, measure, summarise, write_summary
from posttrain.report.record import TRAINED, RunRecord, StageRecord, read_run
from posttrain.report.wording import SPACE, bracket, compact, count, percent, plain, points, spell_seconds
from posttrain.train.folder import RunFolder, write_json, write_text

__all__ = ["render", "write_report", "write_summary"]


def write_report(run: Path) -> Path:
    """Write `report.html` and `summary.json` of the run folder `run`; returns the page's path.

    Missing or damaged parts are named on the page. CheckpointError when `run` is no run folder.
    """
    folder = RunFolder(run)
    record = read_run(run)
    outcome = measure(record)
    write_json(folder.summary, summarise(record, outcome))
    write_text(folder.report, render(record, outcome))
    return folder.report


def render(record: RunRecord, outcome: Outcome) -> str:
    """The page as text."""
    stages = [_curves(stage) for stage in record.stages if stage.metrics or stage.kind in TRAINED]
    extremes = [found for stage in record.stages if (found := tables.pick_extremes(stage)) is not None]
    times = tables.time_rows(record)
    context: dict[str, Any] = {
        "css": _resource("page.css"),
        "version": posttrain.__version__,
        "name": plain(record.name, 200),
        "chain": _chain(record),
        "outcome": outcome,
        "mood": _mood(outcome),
        "headline": _headline(outcome),
        "detectable": None if outcome.detectable is None else f"{100 * outcome.detectable:.1f}",
        "gaps": record.gaps,
        "facts": _facts(record, outcome),
        "stages": stages,
        "examples": _examples(record),
        "extremes": extremes,
        "data": tables.data_rows(record),
        "times": times if any(row.seconds for row in times) else [],
        "total_time": spell_seconds(math.fsum(row.seconds for row in times)),
        "any_parts": any(row.parts for row in times),
        "warnings": _warnings(record, outcome),
        "made_with": tables.fact_rows(record),
        "recipe": record.recipe,
        **_dots(outcome),
    }
    shown = (
        ("scores", "Scores", context["stage_dots"]),
        ("warnings", "Warnings", context["warnings"]),
        ("curves", "Curves", stages),
        ("examples", "Examples", context["examples"]),
        ("rollouts", "Rollouts", extremes),
        ("data", "Data", context["data"]),
        ("time", "Time", context["times"]),
        ("recipe", "Recipe", True),
    )
    context["sections"] = [(anchor, title) for anchor, title, there in shown if there]
    return _template().render(context)


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters |= {
        "plain": plain,
        "percent": percent,
        "points": points,
        "compact": compact,
        "count": count,
        "seconds": spell_seconds,
    }
    environment.globals |= {"bracket": bracket, "spell_parts": tables.spell_parts}
    return environment.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    return resources.files("posttrain.report").joinpath(name).read_text(encoding="utf-8")


def _chain(record: RunRecord) -> str:
    """`smollm2-135m-instruct · SFT → DPO → GRPO`."""
    model = (record.manifest.get("model") or {}).get("name")
    planned = [stage.get("kind") for stage in record.manifest.get("stages") or []]
    kinds = planned or [stage.kind for stage in record.stages]
    trained = " → ".join(label_of(str(kind)) for kind in kinds if kind and kind != "base")
    return " · ".join(plain(part, 200) for part in (model, trained) if part)


def _mood(outcome: Outcome) -> str:
    if outcome.gain is None:
        return "unclear"
    return "better" if outcome.gain.is_better else "worse" if outcome.gain.is_worse else "unclear"


def _headline(outcome: Outcome) -> tuple[str, str | None] | None:
    """The two big numbers, in percent; the second is None when there is nothing to compare with."""
    if outcome.first is None or outcome.first.estimate is None:
        return None
    if outcome.gain is None:
        return f"{100 * outcome.first.estimate.mean:.1f}", None
    return f"{100 * outcome.gain.before:.1f}", f"{100 * outcome.gain.after:.1f}"


def _facts(record: RunRecord, outcome: Outcome) -> list[tuple[str, str]]:
    """The few facts under the headline."""
    facts: list[tuple[str, str]] = []
    estimate = outcome.last.estimate if outcome.last else None
    if estimate is not None:
        samples = estimate.num_samples // max(estimate.num_problems, 1)
        each = f" × {samples} samples" if samples > 1 else ""
        facts.append(("Held-out problems", f"{estimate.num_problems:,}{each}"))
    summary = summarise(record, outcome)
    if summary["seconds"]:
        facts.append(("Time", spell_seconds(summary["seconds"])))
    if summary["peak_rss_gib"]:
        facts.append(("Peak memory", f"{summary['peak_rss_gib']:.2f}{SPACE}GiB"))
    machine = record.manifest.get("machine") or {}
    if machine.get("device") or machine.get("dtype"):
        where = f"{machine['cores']} cores" if machine.get("device") == "cpu" and "cores" in machine else ""
        parts = (str(machine.get("device") or "").upper(), where, machine.get("dtype"))
        facts.append(("Ran on", plain(", ".join(str(part) for part in parts if part), 200)))
    if record.manifest.get("seed") is not None:
        facts.append(("Seed", plain(record.manifest["seed"], 40)))
    return facts


def _curves(stage: StageRecord) -> dict[str, Any]:
    each = stage.episodes_per_step
    main, more = draw_stage(stage.kind, stage.metrics, episodes_per_step=each)
    word = "optimizer" if each is None else "rollout"
    note = f"{len(stage.metrics):,} {word} steps" if stage.metrics else ""
    if each is not None and stage.metrics:
        note += f" of {each:,} episodes"
    windows = {chart.window for chart in main if chart.window > 1}
    if windows:
        note += f", averaged over {max(windows)}"
    measured = draw_measured(stage)
    return {
        "name": stage.label,
        "note": note,
        "main": main,
        "more": more,
        "measured": measured,
        "kept": kept_of(stage),
    }


def _examples(record: RunRecord) -> list[tables.Example]:
    evaluated = [stage for stage in record.stages if stage.samples]
    if len(evaluated) < 2:
        return []
    return tables.pick_examples(evaluated[0].samples, evaluated[-1].samples)


def _warnings(record: RunRecord, outcome: Outcome) -> list[tuple[str, str]]:
    """(stage, sentence), those about the outcome first."""
    stated = [("", sentence) for sentence in outcome.warnings]
    for stage in record.stages:
        stated += [(stage.label, str(text)) for text in (stage.done or {}).get("warnings") or []]
        nulls: dict[str, int] = {}
        for row in stage.metrics:
            for name, value in row.items():
                nulls[name] = nulls.get(name, 0) + (value is None)
        stated += [
            (stage.label, f"{name} was not a finite number at {count} step{'s' if count > 1 else ''}")
            for name, count in nulls.items()
            if count
        ]
    return list(dict.fromkeys(stated))


def _dots(outcome: Outcome) -> dict[str, Any]:
    """Both pictures of the scores: rows of marks in percent of the width, and the ticks below them."""
    estimates = [score.estimate for score in outcome.scores if score.estimate is not None]
    if not estimates:
        return {"stage_dots": [], "kind_dots": [], "ticks": []}
    pairs = [estimate for kind in outcome.kinds for estimate in (kind.base, kind.final)]
    top, ticks = _scale([*estimates, *pairs])
    stage_dots = []
    for index, score in enumerate(outcome.scores):
        last = outcome.last is not None and score.name == outcome.last.name
        look = "base" if index == 0 else "final" if last else "mid"
        note = f"{points(score.gain.difference)} points" if score.gain else ""
        stage_dots.append(_dot(score.label, note, [(look, score.estimate)] if score.estimate else [], top))
    kind_dots = []
    for kind in outcome.kinds:
        problems = f"{kind.final.num_problems:,} problems"
        dot = _dot(kind.kind, problems, [("base", kind.base), ("final", kind.final)], top)
        dot["value"] = f"{points(kind.final.mean - kind.base.mean)}"
        dot["interval"] = f"{percent(kind.base.mean)} → {percent(kind.final.mean)}"
        kind_dots.append(dot)
    return {"stage_dots": stage_dots, "kind_dots": kind_dots, "ticks": ticks}


def _dot(name: str, note: str, marks: Sequence[tuple[str, Estimate]], top: float) -> dict[str, Any]:
    """One row of a picture: a mark per estimate, and the last one's numbers in words."""
    label = "; ".join(f"{percent(e.mean)} {bracket(e.low, e.high)}" for _, e in marks)
    drawn = [
        {
            "look": look,
            "at": round(100 * estimate.mean / top, 2),
            "low": None if math.isnan(estimate.low) else round(100 * estimate.low / top, 2),
            "high": None if math.isnan(estimate.high) else round(100 * estimate.high / top, 2),
        }
        for look, estimate in marks
    ]
    last = marks[-1][1] if marks else None
    return {
        "name": plain(name, 80),
        "note": plain(note, 80),
        "marks": drawn,
        "label": f"{plain(name, 80)}: {label}",
        "value": percent(last.mean) if last else "",
        "interval": bracket(last.low, last.high) if last else "",
    }


def _scale(estimates: Sequence[Estimate]) -> tuple[float, list[tuple[float, str]]]:
    """The axis from zero to a round number above every interval, at most 100 %, and its ticks."""
    highest = max(e.mean if math.isnan(e.high) else e.high for e in estimates)
    shown = nice_ticks(0.0, min(1.0, max(highest, 0.01)), most=5)
    shown = [tick for tick in shown if tick <= 1]
    top = shown[-1] if shown[-1] >= highest else 1.0
    ticks = shown if shown[-1] == top else [*shown, top]
    return top, [(round(100 * tick / top, 2), f"{100 * tick:g}{SPACE}%") for tick in ticks]
