"""When a stage is measured, which of its steps is kept, and what is refused or warned about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.config.load import dump_recipe, load_recipe
from posttrain.config.measure import Benchmarks, Measure, Selection
from posttrain.config.parts import Evaluation
from posttrain.config.plan import measured, missing_files
from posttrain.config.recipe import Recipe
from posttrain.config.stages import Stage
from posttrain.errors import RecipeError

WRITING = {"builtin": "writing", "split": "heldout"}
CHOSEN: dict[str, Any] = {"problems": {"path": "chosen.jsonl"}}
GRPO: dict[str, Any] = {"problems": [{"builtin": "writing"}], "steps": 40}


def measure(**keys: Any) -> Measure:
    return Measure.model_validate({"evaluation": CHOSEN, **keys})


def recipe(reported: dict[str, Any] | None = None, **keys: Any) -> Recipe:
    stage = {"grpo": GRPO, "measure": {"every_steps": 8, "evaluation": CHOSEN, "keep": "best", **keys}}
    return Recipe.model_validate({"name": "r", "model": "m", "stages": [stage], "evaluation": reported})


@pytest.mark.parametrize(
    ("keys", "num_steps", "steps"),
    [
        ({"every_steps": 4}, 12, (4, 8, 12)),
        ({"every_steps": 5}, 12, (5, 10, 12)),  # the last step is always measured
        ({"every_steps": 50}, 12, (12,)),
        ({"every_steps": 5, "at_start": True}, 12, (0, 5, 10, 12)),
        ({"times": 3}, 12, (4, 8, 12)),
        ({"times": 5}, 12, (2, 4, 7, 9, 12)),  # 12/5, 24/5, 36/5, 48/5, 60/5, rounded down
        ({"times": 9}, 4, (1, 2, 3, 4)),  # no more often than there are steps
        ({"times": 1, "at_start": True}, 7, (0, 7)),
    ],
)
def test_steps_by_hand(keys: dict[str, Any], num_steps: int, steps: tuple[int, ...]) -> None:
    assert measure(**keys).steps(num_steps) == steps


def test_thirty_measurements_are_the_cards() -> None:
    """num_evals 30 of 13,020 steps: every 434, as the reference's 13,020 // 30."""
    assert measure(times=30).steps(13_020) == tuple(range(434, 13_021, 434))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, "give either every_steps or times; neither is set"),
        ({"every_steps": 1, "times": 1}, "give either every_steps or times; both are set"),
        ({"evaluation": None, "every_steps": 1}, "there is nothing to measure"),
        ({"evaluation": None, "every_steps": 1, "keep": "best"}, "needs an evaluation to be the best of"),
        ({"evaluation": None, "every_steps": 1, "keep": 3}, "every_steps says when to measure, but there is"),
        ({"evaluation": None, "at_start": True, "keep": 3}, "at_start says when to measure, but there is"),
        ({"times": 1, "keep": "bets"}, "best, last or the number of a step"),
        ({"times": 1, "keep": 0}, "best, last or the number of a step"),
        ({"times": 1, "keep": True}, "best, last or the number of a step"),
        ({"times": 0}, "greater than or equal to 1"),
        ({"times": 1, "benchmarks": {"tasks": []}}, "at least 1 item"),
        ({"times": 1, "benchmarks": {"tasks": ["gsm8"]}}, "did you mean gsm8k?"),
        (
            {"times": 1, "benchmarks": {"tasks": ["gsm8k"], "preset": "tulu3-2024"}},
            "did you mean tulu3-2024-11",
        ),
    ],
)
def test_a_broken_rule_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        measure(**keys)
    assert sentence in str(caught.value)


def test_what_has_no_steps_to_measure_is_refused() -> None:
    pairs = {"data": [{"path": "pairs.jsonl"}]}
    for stage, sentence in (
        ({"reward_model": pairs, "measure": {"times": 1, "evaluation": CHOSEN}}, "answers no problems"),
        ({"grpo": GRPO, "measure": {"keep": 41}}, "measure.keep is 41, and the stage has only 40 steps"),
    ):
        with pytest.raises(ValidationError, match=sentence):
            Stage.model_validate(stage)
    assert Stage.model_validate({"grpo": GRPO, "measure": {"keep": 40}}).measure is not None
    assert (
        Stage.model_validate({"sft": pairs, "measure": {"keep": 41}}).measure is not None
    )  # the data decides


def test_the_line_of_a_mistake_is_said(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: m\nstages:\n  - sft: {data: [{path: x}]}\n    measure:\n      times: 2\n      keeep: best\n"
    )
    with pytest.raises(
        RecipeError, match=r"r\.yaml:7: stages\.0\.measure has no key 'keeep'; did you mean 'keep'"
    ):
        load_recipe(path)


def test_choosing_by_what_is_reported_is_warned_about() -> None:
    """The same problems, or a part of them; not another part, and not where nothing is chosen."""
    reported = {"problems": WRITING, "num_problems": 190}
    same = {"problems": WRITING, "num_problems": 95}
    (warning,) = recipe(reported, evaluation=same).warnings
    assert warning.startswith("stages.0.measure.evaluation has problems of evaluation, so the score")
    assert recipe(reported, evaluation=same | {"skip_problems": 189}).warnings
    assert not recipe(reported, evaluation=same | {"skip_problems": 190}).warnings
    assert recipe(reported, evaluation=same | {"skip_problems": 190, "seed": 1}).warnings  # other lists
    assert recipe({"problems": WRITING}, evaluation=same | {"skip_problems": 190}).warnings
    assert not recipe(reported, evaluation=same, keep="last").warnings
    assert not recipe(reported).warnings and not recipe(None, evaluation=same).warnings


def test_choosing_by_what_is_trained_on_is_warned_about() -> None:
    (warning,) = recipe(evaluation={"problems": {"builtin": "writing"}}).warnings
    assert warning.startswith(
        "stages.0.measure.evaluation.problems is also trained on in stages.0.grpo.problems"
    )


def test_parts_of_one_source_do_not_meet() -> None:
    first = Evaluation.model_validate({"problems": WRITING, "num_problems": 3})
    rest = Selection.model_validate({"problems": WRITING, "skip_problems": 3, "num_problems": 2})
    numbers = list(range(10))
    assert (numbers[first.used], numbers[rest.used]) == ([0, 1, 2], [3, 4])
    assert not rest.overlaps(first)
    assert numbers[rest.model_copy(update={"num_problems": None}).used] == [3, 4, 5, 6, 7, 8, 9]


def test_a_plan_says_when_and_on_what() -> None:
    benchmarks = {"tasks": ["gsm8k", "ifeval"], "limit": 1200}
    (line,) = measured(recipe(benchmarks=benchmarks))
    assert line == (
        "01-grpo",
        "at 5 steps: 8, 16, 24, 32, 40, on all problems of chosen.jsonl and gsm8k, ifeval (1,200 documents each); "
        "kept: the best of them",
    )
    (line,) = measured(recipe(evaluation=None, every_steps=None, keep=10))
    assert line == ("01-grpo", "kept: step 10 (episode 7,680)")
    assert measured(Recipe.model_validate({"name": "r", "model": "m", "stages": [{"grpo": GRPO}]})) == []


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    data = {"benchmarks": {"tasks": ["gsm8k"], "data": str(tmp_path / "none")}}
    found = missing_files(recipe(evaluation={"problems": {"path": str(tmp_path / "gone.jsonl")}}, **data))
    assert [sentence.split(" is ")[0] for sentence in found] == [
        "stages.0.measure.evaluation.problems.path",
        "stages.0.measure.benchmarks.data",
    ]
    for data, missing in (("hub", 0), (f"hub:{tmp_path}", 0), (f"hub:{tmp_path}/none", 1)):
        benchmarks = {"tasks": ["mmlu"], "data": data}
        found = missing_files(recipe(evaluation={"problems": WRITING}, benchmarks=benchmarks))
        assert len(found) == missing


def test_a_measured_recipe_survives_being_written_out(tmp_path: Path) -> None:
    written = recipe({"problems": WRITING}, benchmarks={"tasks": ["gsm8k"]}, keep=7)
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(written))
    assert load_recipe(path) == written
    assert Benchmarks.model_validate({"tasks": ["gsm8k"]}).seed == 0


def test_a_stage_that_is_not_measured_is_written_as_before() -> None:
    """So a run begun earlier goes on: its recipe's text and its hash stay what they were."""
    plain = Recipe.model_validate({"name": "r", "model": "m", "stages": [{"grpo": GRPO}]})
    assert "measure" not in dump_recipe(plain)
