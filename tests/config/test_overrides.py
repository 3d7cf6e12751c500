"""Dotted overrides change exactly one setting, and a path that does not exist is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.load import load_recipe
from posttrain.config.overrides import apply_overrides
from posttrain.config.recipe import Recipe
from posttrain.config.yaml_text import read_yaml
from posttrain.errors import RecipeError

TEXT = """\
name: trial
model: some/model
stages:
  - sft:
      data: [{path: a.jsonl}, {path: b.jsonl}]
  - name: rlvr
    grpo:
      problems: [{builtin: writing}]
      steps: 3
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "trial.yaml"
    file.write_text(TEXT)
    return file


def changes(before: object, after: object, at: str = "") -> dict[str, object]:
    """Every dotted key whose value differs between two dumps."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [(key, before.get(key), after.get(key)) for key in before | after]
    elif isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        keys = [(str(i), b, a) for i, (b, a) in enumerate(zip(before, after, strict=True))]
    else:
        return {} if before == after else {at: after}
    return {k: v for key, b, a in keys for k, v in changes(b, a, f"{at}.{key}".lstrip(".")).items()}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("stages.1.grpo.learning_rate=1e-6", {"stages.1.grpo.learning_rate": 0.000001}),
        ("stages.-1.grpo.steps=4", {"stages.1.grpo.steps": 4}),
        ("stages.0.sft.data.1.path=c.jsonl", {"stages.0.sft.data.1.path": "c.jsonl"}),
        ("stages.0.sft.data.-2.amount=0.5", {"stages.0.sft.data.0.amount": 0.5}),
        ("runtime.device=cpu", {"runtime.device": "cpu"}),
        ("model=a=b", {"model": "a=b"}),
        ("stages.1.grpo.max_grad_norm=null", {"stages.1.grpo.max_grad_norm": None}),
        ("stages.0.sft.data.0={hub: x/y, amount: 3}", {
            "stages.0.sft.data.0.path": None,
            "stages.0.sft.data.0.hub": "x/y",
            "stages.0.sft.data.0.amount": 3,
        }),
        ("description=''", {}),
    ],
)  # fmt: skip
def test_an_override_changes_that_setting_and_no_other(
    path: Path, override: str, changed: dict[str, object]
) -> None:
    before, after = load_recipe(path), load_recipe(path, [override])
    assert changes(before.model_dump(), after.model_dump()) == changed


def test_later_overrides_win_and_build_on_earlier_ones(path: Path) -> None:
    recipe: Recipe = load_recipe(
        path,
        [
            "evaluation={problems: {path: a.jsonl}, seed: 1}",
            "evaluation.problems.path=b.jsonl",
            "evaluation.seed=2",
            "evaluation.seed=3",
        ],
    )
    assert recipe.evaluation is not None
    assert (recipe.evaluation.problems.path, recipe.evaluation.seed) == ("b.jsonl", 3)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.1.grpo.clip_hi=0.3", "stages.1.grpo has no key 'clip_hi'; did you mean 'clip_high'?"),
        ("stages.1.gpro.steps=3", "stages.1 has no key 'gpro'; did you mean 'grpo'?"),
        ("runtme.device=cpu", "a recipe has no key 'runtme'; did you mean 'runtime'?"),
        ("stages.2.grpo.steps=3", "stages has no index 2; there is 0 to 1"),
        ("stages.-3.sft.epochs=3", "stages has no index -3; there is 0 to 1"),
        (
            "stages.grpo.steps=3",
            "stages is a list, so 'grpo' must be an index, 0 to 1; did you mean stages.1?",
        ),
        (
            "stages.rlvr.grpo.steps=3",
            "stages is a list, so 'rlvr' must be an index, 0 to 1; did you mean stages.1?",
        ),
        ("seed.x=1", "seed is a table; it must be a whole number"),
        ("name.x=1", "name is 'trial', a value with no keys below it"),
        ("stages.0.sft.learning_rate=fast", "stages.0.sft.learning_rate is 'fast'; it must be a number"),
        ("stages.1.grpo.top_p=0.9", "stages.1.grpo takes no 'top_p'"),
        ("stages.0.grpo.steps=3", "stages.0.grpo lacks the key 'problems'"),
        ("model=[a", "the value is not valid YAML"),
        ("model={a: 1, a: 2}", "the value is a is written twice"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(path: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    message = str(caught.value)
    assert sentence in message
    assert f"override {override!r}" in message
    assert str(path) not in message


def test_an_override_needs_a_key_and_a_value(path: Path) -> None:
    with pytest.raises(RecipeError, match="'steps' is no override; write KEY=VALUE"):
        load_recipe(path, ["steps"])
    with pytest.raises(RecipeError, match="'=3' is no override"):
        load_recipe(path, ["=3"])
    with pytest.raises(RecipeError, match="override 'model=' has no value; write model=null"):
        load_recipe(path, ["model="])


def test_a_rule_broken_by_an_override_names_the_override(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["stages.1.grpo.mini_batches=5"])
    assert str(caught.value) == (
        "override 'stages.1.grpo.mini_batches=5': stages.1.grpo: 48 prompts_per_step x 16 samples_per_prompt "
        "= 768 completions do not divide into 5 mini_batches"
    )


def test_a_mistake_beside_an_override_still_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "trial.yaml"
    file.write_text(TEXT.replace("steps: 3", "steps: 0"))
    with pytest.raises(RecipeError, match=r"trial\.yaml:9: stages\.1\.grpo\.steps is 0"):
        load_recipe(file, ["seed=2"])


def test_a_negative_index_names_the_override_too(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["stages.-1.grpo.steps=0"])
    assert str(caught.value) == (
        "override 'stages.-1.grpo.steps=0': stages.1.grpo.steps is 0; it must be at least 1"
    )


def test_the_document_that_is_overridden_stays_as_it_was() -> None:
    document = read_yaml(TEXT, "trial.yaml")
    changed = apply_overrides(document, ["stages.1.grpo.steps=9"])
    assert changed.value["stages"][1]["grpo"]["steps"] == 9
    assert document.value == read_yaml(TEXT).value
