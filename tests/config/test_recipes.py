"""The recipes that come with the package, and writing a recipe out and reading it back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config.load import dump_recipe, list_recipes, load_recipe, recipe_descriptions
from posttrain.config.recipe import Recipe
from posttrain.config.reference import TABLES, keys_of, markdown
from posttrain.config.yaml_text import read_yaml, write_yaml

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def reload(text: str, folder: Path) -> Recipe:
    path = folder / "again.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_loads_and_survives_being_written_out(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    text = dump_recipe(recipe)
    assert reload(text, tmp_path) == recipe
    assert dump_recipe(reload(text, tmp_path)) == text
    assert recipe.name == path.stem
    assert not recipe.warnings


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_written_recipe_says_every_default(path: Path) -> None:
    dumped = read_yaml(dump_recipe(load_recipe(path))).value
    for stage in dumped["stages"]:
        kinds = set(stage) - {"name", "start", "measure"}
        assert len(kinds) == 1
        kind = kinds.pop()
        assert list(stage[kind]) == [key.name for key in keys_of(TABLES[f"stages.N.{kind}"])]


def test_recipes_are_listed_with_a_sentence() -> None:
    assert {"quickstart", "smoke", "tulu3.1-8b"} <= set(list_recipes())
    assert all(about.endswith(".") for _, _, about in recipe_descriptions())


def test_quickstart_and_smoke_go_through_every_kind_of_stage() -> None:
    for name in ("quickstart", "smoke"):
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        assert [stage.kind for stage in recipe.stages] == ["sft", "dpo", "grpo"]
        assert recipe.evaluation is not None
        assert recipe.evaluation.problems.split == "heldout"
        assert all(
            source.split == "train" for stage in recipe.stages for _, s in stage.sources for source in s
        )


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_key_says_what_it_means(table: type) -> None:
    for key in keys_of(table):
        assert key.description.rstrip().endswith((".", ")")), key.name
        assert len(key.description) > 15, key.name
        assert "|" not in key.description, key.name


def test_the_page_about_recipes_has_every_key() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page.endswith(markdown()), "docs/recipes.md is stale: replace its tables with reference.markdown()"


def test_the_example_on_the_page_is_a_recipe(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipe = reload(page.split("```yaml\n")[1].split("```")[0], tmp_path)
    assert recipe.stage_folder(1) == "02-rlvr"


SCALARS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["1e-6", "no", "on", "null", "~", "1:30", "0x1F", "2024-01-01", "<<", "- a", "a: b", ".5", "1_0"]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.lists(SCALARS, max_size=3), max_size=4))
def test_any_value_is_read_back_as_it_was_written(value: dict[str, list[object]]) -> None:
    text = write_yaml(value)
    read = read_yaml(text).value
    assert read == value
    assert [[type(v) for v in row] for row in read.values()] == [
        [type(v) for v in row] for row in value.values()
    ]
    texts = [[v for v in row if isinstance(v, str)] for row in value.values()]
    others = yaml.safe_load(text) if value else {}
    assert [[v for v in row if isinstance(v, str)] for row in others.values()] == texts
