"""Curves: what is drawn lies where arithmetic puts it."""

from __future__ import annotations

import math
import re

import pytest

from posttrain.report.curves import (
    CURVES,
    Curve,
    draw,
    draw_stage,
    moving_average,
    nice_ticks,
    smoothing_window,
)

LOSS = Curve("Loss", "nats", ("loss",))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.5, 1]),
        (0.9, 2.3, [0.5, 1, 1.5, 2, 2.5]),
        (-79, -52, [-80, -70, -60, -50]),
        (0, 1.9e-5, [0, 5e-6, 1e-5, 1.5e-5, 2e-5]),
        (3, 3, [2.6, 2.8, 3.0, 3.2, 3.4]),
        (0, 0, [0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_data(low, high, ticks):
    found = nice_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert found == pytest.approx(ticks)


def test_points_lie_where_arithmetic_puts_them():
    """Losses 2, 1, 0 at steps 1, 2, 3: a straight line from the top left to the bottom right."""
    chart = draw(LOSS, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.0}])
    assert points(chart.lines[0].raw) == [(0, 0), (500, 500), (1000, 1000)]
    assert chart.lines[0].end == (100, 100)
    assert chart.y_ticks[0] == (100, "0") and chart.y_ticks[-1] == (0, "2")
    assert chart.x_ticks == ((0, "1"), (50, "2"), (100, "3"))
    assert chart.lines[0].last == "0"


def test_a_null_breaks_the_line_and_is_counted():
    rows = [{"step": i, "loss": None if i == 3 else float(i)} for i in range(1, 6)]
    chart = draw(LOSS, rows)
    assert chart.missing == 1
    assert chart.lines[0].raw.count("M") == 2
    assert len(points(chart.lines[0].raw)) == 4


def test_a_single_step_is_a_dot_in_the_middle():
    chart = draw(LOSS, [{"step": 7, "loss": 1.0}])
    assert chart.lines[0].smooth.startswith("M500.0 ") and chart.lines[0].smooth.endswith("h0.01")
    assert chart.x_ticks == ((50, "7"),)


def test_nothing_logged_is_no_chart():
    assert draw(LOSS, []) is None
    assert draw(LOSS, [{"step": 1, "other": 2.0}]) is None
    assert draw(LOSS, [{"step": 1, "loss": None}]) is None


def test_moving_average_by_hand():
    """Window 3 over 1 2 6 1: (1+2)/2, 9/3, 9/3, 7/2."""
    assert moving_average([1, 2, 6, 1], 3) == [1.5, 3, 3, 3.5]
    assert moving_average([1, 2, 6, 1], 1) == [1, 2, 6, 1]
    gapped = moving_average([1, math.nan, 3], 3)
    assert gapped[0] == 1 and math.isnan(gapped[1]) and gapped[2] == 3


@pytest.mark.parametrize(("rows", "window"), [(5, 1), (19, 1), (40, 3), (120, 7), (2000, 101)])
def test_smoothing_window_is_odd_and_about_a_twentieth(rows, window):
    assert smoothing_window(rows) == window


def test_long_runs_are_thinned_but_keep_their_spikes():
    rows = [{"step": i, "loss": 100.0 if i == 7777 else 1.0} for i in range(1, 20_001)]
    drawn = points(draw(LOSS, rows).lines[0].raw)
    assert len(drawn) <= 420
    assert min(y for _, y in drawn) == 0
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


def test_every_logged_metric_is_drawn_somewhere():
    rows = [{"step": i, "loss/nats_per_token": 1.0, "my/own_metric": 2.0} for i in range(3)]
    main, more = draw_stage("sft", rows)
    assert [chart.title for chart in main] == ["Loss"]
    assert [chart.title for chart in more] == ["my/own_metric"]
    main, more = draw_stage("a new kind", rows)
    assert {chart.title for chart in main + more} == {"loss/nats_per_token", "my/own_metric"}


@pytest.mark.parametrize("kind", CURVES)
def test_no_metric_is_drawn_twice(kind):
    names = [name for curve in CURVES[kind] for name in curve.metrics]
    assert len(names) == len(set(names))
