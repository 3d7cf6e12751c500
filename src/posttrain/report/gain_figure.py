"""The before/after picture as a file, for a README or a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from posttrain.errors import DataError
from posttrain.evaluation.statistics import Estimate
from posttrain.report.outcome import Outcome, measure
from posttrain.report.record import read_run
from posttrain.report.wording import percent, plain, points
from posttrain.train.folder import writing


@dataclass(frozen=True, slots=True)
class _Ink:
    """Colours of one theme; blue against grey is told apart by everyone, and in print."""

    paper: str
    text: str
    soft: str
    line: str
    base: str
    final: str


_LIGHT = _Ink("#ffffff", "#191d23", "#565f6b", "#e3e0d9", "#7d8590", "#0a63b0")
_DARK = _Ink("#0d1117", "#e9ebee", "#a7b0bb", "#2c323a", "#98a1ac", "#62b1f5")
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "posttrain",
}


def write_gain_figure(run: Path, out: Path, *, dark: bool = False) -> Path:
    """Draw score per stage, and per kind of task where there are several, into `out` (.png, .svg, .pdf).

    DataError when the run has no held-out score yet.
    """
    outcome = measure(read_run(run))
    if outcome.first is None:
        raise DataError(f"{run} has no held-out score to draw; let the run evaluate its base model first")
    with rc_context(_STYLE), writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _draw(outcome, _DARK if dark else _LIGHT).savefig(out, dpi=200, metadata=_metadata(out))
    return out


def _draw(outcome: Outcome, ink: _Ink) -> Figure:
    stages = [score for score in outcome.scores if score.estimate is not None]
    panels = 2 if outcome.kinds else 1
    num_rows = max(len(stages), len(outcome.kinds))
    width, size = (11.2, 14) if panels == 2 else (8.0, 11)
    layout = ConstrainedLayoutEngine(w_pad=0.18, h_pad=0.14, wspace=0.08)
    figure = Figure(figsize=(width, 1.5 + 0.52 * num_rows), facecolor=ink.paper, layout=layout)
    figure.suptitle(outcome.sentence, x=0.02, ha="left", color=ink.text, fontsize=size, fontweight="bold")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    estimates = [score.estimate for score in stages if score.estimate is not None]
    estimates += [estimate for kind in outcome.kinds for estimate in (kind.base, kind.final)]
    top = max(e.mean if math.isnan(e.high) else e.high for e in estimates)
    _prepare(axes[0], "After each stage", [score.label for score in stages], top, ink)
    for row, score in enumerate(stages):
        colour = ink.base if row == 0 else ink.final
        filled = row + 1 == len(stages) and row > 0
        _mark(axes[0], row, score.estimate, colour, filled, ink)
        _note(axes[0], row, percent(score.estimate.mean) if score.estimate else "", ink)
    if panels == 2:
        ends = [score.label for score in (outcome.first, outcome.last) if score is not None]
        title = f"By kind of task: {ends[0]} (open) and {ends[-1]} (filled)"
        _prepare(axes[1], title, [plain(kind.kind, 40) for kind in outcome.kinds], top, ink)
        for row, kind in enumerate(outcome.kinds):
            _mark(axes[1], row - 0.14, kind.base, ink.base, False, ink)
            _mark(axes[1], row + 0.14, kind.final, ink.final, True, ink)
            _note(axes[1], row, points(kind.final.mean - kind.base.mean), ink)
    return figure


def _prepare(axes: Axes, title: str, names: Sequence[str], top: float, ink: _Ink) -> None:
    """Rows from top to bottom, a percent axis from zero, light grid lines and nothing else."""
    axes.set_facecolor(ink.paper)
    axes.set_title(title, loc="left", color=ink.soft, fontsize=11, pad=8)
    axes.set_yticks(range(len(names)), names, color=ink.text)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, min(1.0, top * 1.06))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.tick_params(length=0, colors=ink.soft, pad=10)
    axes.tick_params(axis="y", labelcolor=ink.text)
    axes.grid(axis="x", color=ink.line, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(axes: Axes, row: float, estimate: Estimate | None, colour: str, filled: bool, ink: _Ink) -> None:
    """A dot at the mean over its interval."""
    if estimate is None:
        return
    if not math.isnan(estimate.low):
        span = [estimate.low, estimate.high]
        axes.plot(span, [row, row], color=colour, alpha=0.45, linewidth=3, solid_capstyle="round")
    axes.plot(
        [estimate.mean],
        [row],
        marker="o",
        markersize=8,
        markeredgewidth=2,
        color=colour,
        markerfacecolor=colour if filled else ink.paper,
        clip_on=False,
        zorder=3,
    )


def _note(axes: Axes, row: int, text: str, ink: _Ink) -> None:
    """`text` at the right end of a row."""
    axes.annotate(
        text.replace("\u00a0", " "),
        (1.02, row),
        xycoords=("axes fraction", "data"),
        va="center",
        color=ink.text,
        fontweight="bold",
        annotation_clip=False,
    )


def _metadata(out: Path) -> dict[str, None] | None:
    """No time stamp, so that the same run gives the same file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(out.suffix)
