"""Charts of what was measured while a stage trained: points with their errors, and the step that was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report.curves import Chart, Line, episode_ticks, nice_ticks, svg_path, x_ticks
from posttrain.report.record import StageRecord
from posttrain.report.wording import compact

_MOST_DOTS = 60
"""Points with a dot each; more of them would hide the line."""
_Z95 = 1.959964
"""Standard errors from the middle to the end of a normal 95 % interval."""


@dataclass(frozen=True, slots=True)
class Series:
    """One measured quantity in percent: (step, value, low, high), ascending; low and high may be NaN."""

    title: str
    unit: str
    points: tuple[tuple[float, float, float, float], ...]


def draw_measured(stage: StageRecord) -> list[Chart]:
    """The score of the problems and every benchmark over steps; none for a stage that was not measured."""
    rows = sorted(stage.measured, key=lambda row: row["step"])
    found = [_scores(rows, is_choice=stage.keep == "best")]
    found += [_benchmark(rows, name, title) for name, title in stage.benchmarks.items()]
    last = max([row["step"] for row in (*rows, *stage.metrics)], default=0)
    kept = stage.kept if stage.kept and stage.kept.get("keep") != "last" else {}
    return [_draw(one, last, kept.get("step"), stage.episodes_per_step) for one in found if one.points]


def _scores(rows: Sequence[Mapping[str, Any]], *, is_choice: bool) -> Series:
    points = tuple(
        (
            float(row["step"]),
            100 * row["eval/score"],
            100 * _number(row.get("eval/score_low")),
            100 * _number(row.get("eval/score_high")),
        )
        for row in rows
        if row.get("eval/score") is not None
    )
    problems = next((row["eval/problems"] for row in rows if row.get("eval/problems")), 0)
    title = "Selection score" if is_choice else "Score while training"
    return Series(title, f"% on {problems:,} problems, 95 % interval", points)


def _benchmark(rows: Sequence[Mapping[str, Any]], name: str, title: str) -> Series:
    points = []
    for row in rows:
        value = row.get(f"benchmark/{name}_percent")
        if value is not None:
            reach = _Z95 * _number(row.get(f"benchmark/{name}_stderr"))
            points.append((float(row["step"]), value, value - reach, value + reach))
    documents = next((row[key] for row in rows if row.get(key := f"benchmark/{name}_documents")), 0)
    return Series(title, f"% on {documents:,} documents, 95 % interval", tuple(points))


def _draw(series: Series, last: float, kept: int | None, episodes_per_step: int | None) -> Chart:
    """The chart from step 0 to the stage's `last`, so that it lies under the training curves."""
    known = [y for _, *ys in series.points for y in ys if not math.isnan(y)]
    low, high = max(0.0, min(known)), min(100.0, max(known))
    ticks = nice_ticks(low, high) if low < high else nice_ticks(max(0.0, low - 10), min(100.0, high + 10))
    bottom, top = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        inside = min(max(value, bottom), top)
        return 1000 * step / last if last else 500.0, 1000 * (top - inside) / (top - bottom)

    middle = [place(step, value) for step, value, _, _ in series.points]
    spread = [(step, lo, hi) for step, _, lo, hi in series.points if not math.isnan(lo + hi)]
    ups = [place(step, hi) for step, _, hi in spread]
    downs = [place(step, lo) for step, lo, _ in reversed(spread)]
    path = svg_path(middle)
    values = [value for _, value, _, _ in series.points]
    said = [f"step {step:,.0f}: {value:.1f} %" for step, value, _, _ in series.points]
    has_kept = kept is not None and 0 < kept <= last
    return Chart(
        title=series.title,
        unit=series.unit,
        lines=(Line("", path, path, f"{values[-1]:.1f}", (middle[-1][0] / 10, middle[-1][1] / 10)),),
        y_ticks=tuple((100 * (top - tick) / (top - bottom), compact(tick)) for tick in ticks),
        x_ticks=x_ticks(0.0, last),
        description="; ".join(said) + (f"; kept: step {kept:,}" if has_kept else ""),
        window=1,
        missing=0,
        episode_ticks=episode_ticks(0.0, last, episodes_per_step),
        band=svg_path([*ups, *downs]) + "Z" if spread else "",
        dots=tuple((x / 10, y / 10) for x, y in middle) if len(middle) <= _MOST_DOTS else (),
        mark=(100 * kept / last, _kept_label(kept, series)) if kept is not None and has_kept else None,
    )


def _kept_label(kept: int, series: Series) -> str:
    """`kept: step 80, 58.0`, without a value where that step was not measured."""
    value = next((f", {value:.1f}" for step, value, _, _ in series.points if step == kept), "")
    return f"kept: step {kept:,}{value}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
