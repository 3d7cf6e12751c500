"""What was measured while a stage trained: on the page, in summary.json and on the card."""

from __future__ import annotations

import json
import re

import pytest

from posttrain.report.curves import episode_ticks
from posttrain.report.kept import kept_of
from posttrain.report.measured_curves import draw_measured
from posttrain.report.model_card import write_card
from posttrain.report.record import StageRecord
from posttrain.report.run_page import write_report

MEASURED = (
    {"step": 10, "eval/score": 0.2, "eval/score_low": 0.1, "eval/score_high": 0.3, "eval/problems": 7},
    {"step": 20, "eval/score": 0.4, "eval/score_low": 0.2, "eval/score_high": 0.6, "eval/problems": 7},
)
HOSTILE = '<script>alert(1)</script><img src="x" onerror="alert(1)">'
RECIPE = {"measure": {"keep": "best"}, "grpo": {"prompts_per_step": 3, "samples_per_prompt": 4}}


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def stage(**parts: object) -> StageRecord:
    return StageRecord("01-grpo", "grpo", "GRPO", **{"measured": MEASURED, "recipe": RECIPE, **parts})


def test_points_and_intervals_lie_where_arithmetic_puts_them():
    """20 % and 40 % at steps 10 and 20 of 40; the axis from 10 to 60 %, so 20 % is four fifths down."""
    (chart,) = draw_measured(stage(metrics=({"step": 40},)))
    assert (chart.title, chart.unit) == ("Selection score", "% on 7 problems, 95 % interval")
    assert (chart.y_ticks[0], chart.y_ticks[-1]) == ((100, "0"), (0, "60"))
    assert points(chart.lines[0].smooth) == [(250, 666.7), (500, 333.3)]
    assert points(chart.band) == [(250, 500), (500, 0), (500, 666.7), (250, 833.3)]
    assert chart.band.endswith("Z") and chart.lines[0].last == "40.0"
    assert chart.x_ticks == ((0, "0"), (50, "20"), (100, "40"))
    assert chart.episode_ticks == ((0, "0"), (50, "240"), (100, "480"))
    assert chart.mark is None


def test_the_kept_step_is_marked_where_it_is():
    """Step 20 of 40 is in the middle, with its value; a last step that is kept needs no mark."""
    kept = {"keep": "best", "step": 20, "num_steps": 40, "score": 0.4, "candidates": []}
    (chart,) = draw_measured(stage(metrics=({"step": 40},), kept=kept))
    assert chart.mark == (50, "kept: step 20, 40.0")
    assert "kept: step 20" in chart.description
    (chart,) = draw_measured(stage(metrics=({"step": 40},), kept=kept | {"keep": "last", "step": 40}))
    assert chart.mark is None
    (chart,) = draw_measured(stage(metrics=({"step": 40},), kept=kept | {"keep": 30, "step": 30}))
    assert chart.mark == (75, "kept: step 30")


def test_what_has_no_interval_or_no_recipe_is_drawn_without():
    bare = ({"step": 5, "eval/score": 1.0, "eval/score_low": None, "eval/score_high": None},)
    (chart,) = draw_measured(stage(measured=bare, recipe={}))
    assert (chart.title, chart.band, chart.episode_ticks) == ("Score while training", "", ())
    assert chart.dots == ((100, 0),)
    assert draw_measured(stage(measured=())) == []
    assert draw_measured(stage(measured=({"step": 5, "eval/score": None},))) == []


def test_a_benchmark_has_a_chart_of_its_own_with_two_standard_errors():
    """30 ± 5 at one step: its interval is 30 ± 9.8."""
    numbers = {"percent": 30.0, "stderr": 5.0, "documents": 84}
    measured = ({"step": 4, **{f"benchmark/toy_{name}": value for name, value in numbers.items()}},)
    (chart,) = draw_measured(stage(measured=measured, benchmarks={"toy": "Toy (0-shot)"}))
    assert (chart.title, chart.unit) == ("Toy (0-shot)", "% on 84 documents, 95 % interval")
    ticks = {label: at for at, label in chart.y_ticks}
    per_point = (ticks["20"] - ticks["40"]) / 20 * 10
    (_, up), (_, down) = points(chart.band)
    assert (down - up) / per_point == pytest.approx(2 * 1.96 * 5, rel=0.01)


def test_episodes_are_steps_times_completions():
    """The card's run: 48 x 16 completions; step 1,920 is episode 1,474,560."""
    assert episode_ticks(0, 1920, 48 * 16) == ((0, "0"), (50, "737,280"), (100, "1,474,560"))
    assert episode_ticks(1, 13_020, 48 * 16)[-1] == (100, "9,999,360")
    assert episode_ticks(7, 7, 10) == ((50, "70"),)
    assert episode_ticks(1, 5, None) == ()


def test_page_summary_and_card_say_what_was_kept(make_run, add_measurements):
    run = make_run(hostile="")
    kept = add_measurements(run)
    html = write_report(run).read_text()
    sentence = "The result of GRPO is step 80 of 120 (episode 61,440): the best of 12 measured steps with"
    assert sentence in html and "GSM8K (8-shot, CoT)" in html and "Selection score" in html
    assert html.count("kept: step 80") == 9  # three charts, each with its mark, title and label
    assert html.count(">episode 768<") == 21 and html.count(">episode 0<") == 3
    entries = {entry["name"]: entry for entry in json.loads((run / "summary.json").read_text())["stages"]}
    assert entries["03-grpo"]["kept"] == kept | {"episode": 61_440}
    assert "kept" not in entries["02-dpo"]
    card = write_card(run).read_text()
    assert sentence in card
    assert all(f"step {one['step']} {100 * one['score']:.1f} ±" in card for one in kept["candidates"])


def test_hostile_titles_and_a_recipe_that_is_none_stay_text(make_run, add_measurements):
    run = make_run(hostile="")
    add_measurements(run, hostile=HOSTILE)
    (run / "recipe.yaml").write_text("stages: [3, {dpo: 7}, {grpo: [1], measure: yes}]")
    html = write_report(run).read_text()
    assert "<script" not in html and "onerror=&#34;" in html
    (run / "recipe.yaml").write_text("stages: {a: [")
    assert "episode 768" not in write_report(run).read_text()
    (run / "stages/03-grpo/kept.json").write_text('{"keep": "be')
    assert "kept.json is damaged" in write_report(run).read_text()


def test_while_it_trains_nothing_is_kept_yet(make_run, add_measurements):
    run = make_run(hostile="")
    add_measurements(run)
    for name in ("kept.json", "done.json"):
        (run / "stages/03-grpo" / name).unlink()
    html = write_report(run).read_text()
    assert "Selection score" in html and "kept: step" not in html and "The result of GRPO" not in html


def test_why_a_step_is_the_result():
    candidates = [{"step": 10, "score": 0.2, "stderr": None}, {"step": 20, "score": 0.4, "stderr": 0.05}]
    kept = {"keep": "last", "step": 40, "num_steps": 40, "score": None, "candidates": candidates}
    assert kept_of(stage(kept=kept)).sentence.endswith(
        "step 40 of 40 (episode 480): the last, as the recipe says."
    )
    named = kept_of(stage(kept=kept | {"keep": 20, "step": 20}, recipe={}))
    assert named.sentence == "The result of GRPO is step 20 of 40: the one that the recipe names."
    assert [one.spelt for one in named.candidates] == ["20.0\u00a0%", "40.0 ± 5.0\u00a0%"]
    assert [one.is_kept for one in named.candidates] == [False, True]
    assert kept_of(stage(kept=None)) is None
