"""Learning curves as drawing instructions: paths in a 1000 x 1000 box, ticks in percent of the plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from posttrain.report.wording import compact

_MOST_POINTS = 400
"""Points of a path; longer runs keep each bucket's smallest and largest value, so spikes stay."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One small chart: what it shows, its unit, the metrics it reads, and the range it cannot leave."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    bounds: tuple[float, float] | None = None
    smoothed: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of a chart; `raw` and `smooth` are SVG path data."""

    label: str
    raw: str
    smooth: str
    last: str
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """A curve ready to draw. Ticks are (percent from the top or left, label)."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    description: str
    window: int
    missing: int
    episode_ticks: tuple[tuple[float, str], ...] = ()
    """The same places as `x_ticks`, counted in sampled completions."""
    band: str = ""
    """SVG path data of the area between the ends of the intervals."""
    dots: tuple[tuple[float, float], ...] = ()
    """Measured points, in percent from the left and the top."""
    mark: tuple[float, str] | None = None
    """A step to point out: percent from the left, and what it is."""


_COMMON = (
    Curve("Gradient norm", "before clipping", ("optim/grad_norm",)),
    Curve("Learning rate", "AdamW step size", ("optim/learning_rate",), smoothed=False),
    Curve("Speed", "tokens per second", ("throughput/tokens_per_second",)),
    Curve("Step time", "seconds", ("time/step_seconds",)),
)
CURVES: dict[str, tuple[Curve, ...]] = {
    "sft": (
        Curve("Loss", "nats per token", ("loss/nats_per_token",)),
        *_COMMON,
        Curve("Targets", "tokens per step", ("batch/targets",)),
    ),
    "dpo": (
        Curve("Loss", "nats per pair", ("loss/nats_per_pair",)),
        Curve("Implicit reward", "β-scaled nats", ("rewards/chosen", "rewards/rejected")),
        Curve("Margin", "chosen minus rejected", ("rewards/margins",)),
        Curve("Accuracy", "share of pairs", ("rewards/accuracies",), (0, 1)),
        Curve("Log-probability", "nats per answer", ("logps/chosen_nats", "logps/rejected_nats")),
        *_COMMON,
    ),
    "reward_model": (
        Curve("Loss", "nats per pair", ("loss/nats_per_pair",)),
        Curve("Accuracy", "share of pairs", ("rewards/accuracies", "heldout/accuracies"), (0, 1)),
        Curve("Margin", "chosen minus rejected", ("rewards/margins", "heldout/margins")),
        Curve("Score", "logits", ("rewards/chosen", "rewards/rejected")),
        *_COMMON,
    ),
    "ppo": (
        Curve("Reward", "mean per completion", ("reward/mean",)),
        Curve("KL to the reference", "nats per token", ("policy/kl_to_reference_nats",)),
        Curve("Explained variance", "of the returns, by the values", ("value/explained_variance",)),
        Curve("Value loss", "squared rewards", ("loss/value",)),
        Curve("Entropy", "nats per token", ("policy/entropy_nats",)),
        Curve("Completion length", "tokens", ("completions/mean_length_tokens",)),
        Curve("Stop rate", "share that ended by itself", ("completions/stop_rate",), (0, 1)),
        Curve("Sampler–trainer gap", "mean |Δ log p|, nats", ("sampling/logprob_difference_mean_nats",)),
        Curve("Policy loss", "clipped surrogate", ("loss/policy",)),
        Curve("Clipped tokens", "share", ("policy/clip_fraction", "value/clip_fraction")),
        Curve("Value and return", "mean per token, rewards", ("value/mean", "value/return_mean")),
        Curve("Staleness", "steps", ("rollout/staleness_steps",)),
        *_COMMON,
    ),
    "grpo": (
        Curve("Reward", "mean per completion", ("reward/mean",)),
        Curve("KL to the reference", "nats per token", ("policy/kl_to_reference_nats",)),
        Curve("Entropy", "nats per token", ("policy/entropy_nats",)),
        Curve("Completion length", "tokens", ("completions/mean_length_tokens",)),
        Curve("Stop rate", "share that ended by itself", ("completions/stop_rate",), (0, 1)),
        Curve("Sampler–trainer gap", "mean |Δ log p|, nats", ("sampling/logprob_difference_mean_nats",)),
        Curve("Largest gap", "sampler–trainer, nats", ("sampling/logprob_difference_max_nats",)),
        Curve("Groups without signal", "share", ("reward/zero_signal_groups_fraction",), (0, 1)),
        Curve("Policy loss", "clipped surrogate", ("loss/policy",)),
        Curve("Clipped tokens", "share", ("policy/clip_fraction",)),
        Curve("KL loss", "nats per token", ("loss/kl_nats",)),
        Curve("Staleness", "steps", ("rollout/staleness_steps",)),
        *_COMMON,
    ),
}
NUM_SHOWN = {"sft": 3, "dpo": 6, "reward_model": 3, "ppo": 9, "grpo": 9}
"""Charts shown at once; the others wait behind a fold."""


def draw_stage(
    kind: str, rows: Sequence[Mapping[str, Any]], *, episodes_per_step: int | None = None
) -> tuple[list[Chart], list[Chart]]:
    """The stage's main charts and all its others, for any metric that was logged.

    With `episodes_per_step`, the completions sampled in a step, they have a second axis that counts those.
    """
    known = CURVES.get(kind, ())
    named = {name for curve in known for name in curve.metrics} | {"step"}
    logged = dict.fromkeys(name for row in rows for name in row)
    extra = [Curve(name, "as logged", (name,)) for name in logged if name not in named]
    charts: list[Chart] = []
    num_main = 0
    for index, curve in enumerate((*known, *extra)):
        chart = draw(curve, rows, episodes_per_step=episodes_per_step)
        if chart is not None:
            charts.append(chart)
            num_main += index < NUM_SHOWN.get(kind, 6)
    return charts[:num_main], charts[num_main:]


def draw(
    curve: Curve, rows: Sequence[Mapping[str, Any]], *, episodes_per_step: int | None = None
) -> Chart | None:
    """The chart of `curve`, or None when no row has a number for it."""
    steps = [float(row["step"]) for row in rows]
    columns = {name: [_number(row.get(name)) for row in rows] for name in curve.metrics}
    columns = {name: ys for name, ys in columns.items() if not all(math.isnan(y) for y in ys)}
    if not columns:
        return None
    window = smoothing_window(len(rows)) if curve.smoothed else 1
    low, high, ticks = _axis([y for ys in columns.values() for y in ys if not math.isnan(y)], curve.bounds)
    first, last = steps[0], steps[-1]
    span = (last - first) or 1.0

    def place(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (1000 * (x - first) / span if last > first else 500.0, 1000 * (high - y) / (high - low))
            for x, y in zip(xs, ys, strict=True)
        ]

    lines = []
    for name, ys in columns.items():
        smooth = moving_average(ys, window)
        final = [point for point in place(steps, smooth) if not math.isnan(point[1])][-1]
        lines.append(
            Line(
                label=name.rpartition("/")[2].removesuffix("_nats"),
                raw=svg_path(_thin(place(steps, ys))),
                smooth=svg_path(_thin(place(steps, smooth))),
                last=compact([y for y in smooth if not math.isnan(y)][-1]),
                end=(final[0] / 10, final[1] / 10),
            )
        )
    return Chart(
        title=curve.title,
        unit=curve.unit,
        lines=tuple(lines),
        y_ticks=tuple((100 * (high - tick) / (high - low), compact(tick)) for tick in ticks),
        x_ticks=x_ticks(first, last),
        description="; ".join(_describe(name, ys) for name, ys in columns.items()),
        window=window,
        missing=sum(name in row and row[name] is None for row in rows for name in columns),
        episode_ticks=episode_ticks(first, last, episodes_per_step),
    )


def smoothing_window(num_rows: int) -> int:
    """Steps averaged for the bold line: odd, about a twentieth of the run, 1 (none) for short runs."""
    return 1 if num_rows < 20 else 2 * (num_rows // 40) + 1


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` (odd) neighbours, fewer at the ends; NaN only where all are NaN."""
    reach = window // 2
    real = [not math.isnan(value) for value in values]
    sums = [0.0, *accumulate(value if there else 0.0 for value, there in zip(values, real, strict=True))]
    counts = [0, *accumulate(real)]
    result = []
    for index, there in enumerate(real):
        start, stop = max(0, index - reach), min(len(real), index + reach + 1)
        # A gap in the data stays a gap in the line.
        mean = (sums[stop] - sums[start]) / (counts[stop] - counts[start]) if there else math.nan
        result.append(mean)
    return result


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover `low` to `high`."""
    if high <= low:
        low, high = low - abs(low) * 0.1, high + (abs(high) * 0.1 or 1.0)
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(start, stop + 1)]


def _axis(values: Sequence[float], bounds: tuple[float, float] | None) -> tuple[float, float, list[float]]:
    low, high = bounds or (min(values), max(values))
    ticks = nice_ticks(min(low, *values), max(high, *values))
    return ticks[0], ticks[-1], ticks


def x_ticks(first: float, last: float) -> tuple[tuple[float, str], ...]:
    """Beginning, middle and end of the steps `first` to `last`."""
    return tuple((place, f"{at:,.0f}") for place, at in _thirds(first, last))


def episode_ticks(first: float, last: float, episodes_per_step: int | None) -> tuple[tuple[float, str], ...]:
    """The same places in completions sampled until then; none where a step samples none."""
    if episodes_per_step is None:
        return ()
    found = [(place, round(at) * episodes_per_step) for place, at in _thirds(first, last)]
    return tuple((place, f"{at:,}" if at < 10_000_000 else compact(at)) for place, at in found)


def _thirds(first: float, last: float) -> tuple[tuple[float, float], ...]:
    if last <= first:
        return ((50.0, first),)
    return ((0.0, first), (50.0, (first + last) / 2), (100.0, last))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    kept: list[tuple[float, float]] = []
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    for start in range(0, len(points), size):
        bucket = [point for point in points[start : start + size] if not math.isnan(point[1])]
        if bucket:
            ends = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
            kept += sorted(ends)
        else:
            kept.append(points[start])
    return kept


def svg_path(points: Sequence[tuple[float, float]]) -> str:
    """SVG path data; a NaN lifts the pen, and a lone point becomes a dot."""
    parts: list[str] = []
    pen_down = False
    for index, (x, y) in enumerate(points):
        if math.isnan(y):
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        alone = not pen_down and (index + 1 == len(points) or math.isnan(points[index + 1][1]))
        if alone:
            parts.append("h0.01")
        pen_down = True
    return "".join(parts)


def _describe(name: str, values: Sequence[float]) -> str:
    real = [value for value in values if not math.isnan(value)]
    return (
        f"{name}: first {compact(real[0])}, last {compact(real[-1])}, "
        f"smallest {compact(min(real))}, largest {compact(max(real))}"
    )
