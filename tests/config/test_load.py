"""A recipe's mistakes are named with file, line and what to do; a good one loads as written."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from posttrain.config.load import find_recipe, load_recipe
from posttrain.config.recipe import Recipe
from posttrain.config.yaml_text import read_yaml
from posttrain.errors import RecipeError

GOOD = """\
name: trial
model: some/model
stages:
  - sft:
      data: [{path: rows.jsonl}]
      learning_rate: 2e-5
  - dpo:
      data:
        - path: pairs.jsonl
          amount: 500
  - grpo:
      problems:
        - {builtin: writing}
      steps: 3
      clip_low: 0.1
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "trial.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return load_recipe(path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    """The error's sentence, with the folder taken off the file's name."""
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def test_a_good_recipe_loads_as_written(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert [stage.kind for stage in recipe.stages] == ["sft", "dpo", "grpo"]
    assert recipe.stages[0].sft is not None and recipe.stages[0].sft.learning_rate == 0.00002
    assert recipe.stages[1].dpo is not None and recipe.stages[1].dpo.data[0].amount == 500
    assert recipe.stages[2].grpo is not None and recipe.stages[2].grpo.clip_low == 0.1
    assert recipe.output == "runs/trial"
    assert [recipe.stage_folder(i) for i in range(3)] == ["01-sft", "02-dpo", "03-grpo"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "      clip_low: 0.1",
            "      clip_hi: 0.3",
            "trial.yaml:15: stages.2.grpo has no key 'clip_hi'; did you mean 'clip_high'?",
        ),
        (
            "          amount: 500",
            "          amout: 500",
            "trial.yaml:10: stages.1.dpo.data.0 has no key 'amout'; did you mean 'amount'?",
        ),
        (
            "name: trial",
            "name: trial\nmodle: x",
            "trial.yaml:2: a recipe has no key 'modle'; did you mean 'model'?",
        ),
        (
            "      learning_rate: 2e-5",
            "      lr: 2e-5",
            "trial.yaml:6: stages.0.sft has no key 'lr'; did you mean 'learning_rate'?",
        ),
        (
            "      clip_low: 0.1",
            "      num_generations: 8",
            "trial.yaml:15: stages.2.grpo has no key 'num_generations'; did you mean 'samples_per_prompt'?",
        ),
        (
            "      learning_rate: 2e-5",
            "      learning_rate: fast",
            "trial.yaml:6: stages.0.sft.learning_rate is 'fast'; it must be a number",
        ),
        (
            "      learning_rate: 2e-5",
            "      learning_rate: -2e-5",
            "trial.yaml:6: stages.0.sft.learning_rate is -2e-05; it must be greater than 0",
        ),
        (
            "      learning_rate: 2e-5",
            "      learning_rate: .nan",
            "trial.yaml:6: stages.0.sft.learning_rate is nan; it must be a finite number",
        ),
        (
            "      steps: 3",
            "      steps: 3.0",
            "trial.yaml:14: stages.2.grpo.steps is 3.0; "
            "it must be a whole number, written without a point or an exponent",
        ),
        (
            "      steps: 3",
            "      steps: true",
            "trial.yaml:14: stages.2.grpo.steps is true; "
            "it must be a whole number, written without a point or an exponent",
        ),
        (
            "      clip_low: 0.1",
            "      samples_per_prompt: 1",
            "trial.yaml:15: stages.2.grpo.samples_per_prompt is 1; it must be at least 2",
        ),
        (
            "      clip_low: 0.1",
            "      kl_in: los",
            "trial.yaml:15: stages.2.grpo.kl_in is 'los'; it must be loss or reward; did you mean 'loss'?",
        ),
        (
            "      clip_low: 0.1",
            "      std_ddof: 2",
            "trial.yaml:15: stages.2.grpo.std_ddof is 2; it must be 0 or 1",
        ),
        (
            "          amount: 500",
            "          amount: '500'",
            "trial.yaml:10: stages.1.dpo.data.0.amount is '500'; "
            "it must be a count of rows such as 500, or a fraction with a point such as 0.5",
        ),
        ("name: trial", "name: 7", "trial.yaml:1: name is 7; it must be text; put it in quotes"),
        (
            "name: trial",
            "name: ../up",
            "trial.yaml:1: name is '../up'; it names a folder, so use letters, digits, '.', '_' and '-' "
            "and begin with a letter or digit",
        ),
        ("model: some/model", "model: ''", "trial.yaml:2: model is ''; it must not be empty"),
        (
            "model: some/model\n",
            "",
            "trial.yaml:1: the recipe lacks the key 'model': The model to start from",
        ),
        (
            "      problems:\n        - {builtin: writing}\n",
            "",
            "trial.yaml:11: stages.2.grpo lacks the key 'problems': Problems to sample for",
        ),
        (
            "        - {builtin: writing}",
            "        builtin: writing",
            "trial.yaml:12: stages.2.grpo.problems is a table; it must be a list",
        ),
        ("        - {builtin: writing}", "        []", "is an empty list; it needs at least one entry"),
        (
            "        - {builtin: writing}",
            "        - writing",
            "trial.yaml:13: stages.2.grpo.problems.0 is 'writing'; it must be a table of keys and values",
        ),
        (
            "      steps: 3",
            "      steps: 3\n      steps: 4",
            "trial.yaml:15: stages.2.grpo.steps is written twice (first in line 14)",
        ),
        (
            "name: trial",
            "name: trial\n'name': other",
            "trial.yaml:2: name is written twice (first in line 1)",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert GOOD.count(old) == 1
    assert sentence in refusal(tmp_path, GOOD.replace(old, new))


def test_a_misspelt_key_is_said_before_what_it_leaves_missing(tmp_path: Path) -> None:
    text = GOOD.replace("model: some/model", "mdoel: some/model").replace("steps: 3", "steps: 0")
    assert refusal(tmp_path, text) == (
        "trial.yaml:2: a recipe has no key 'mdoel'; did you mean 'model'? (and 2 more mistakes)"
    )


def test_one_more_mistake_is_counted(tmp_path: Path) -> None:
    text = GOOD.replace("steps: 3", "steps: 0").replace("clip_low: 0.1", "clip_low: 2.0")
    assert refusal(tmp_path, text).endswith(
        "stages.2.grpo.steps is 0; it must be at least 1 (and 1 more mistake)"
    )


@pytest.mark.parametrize("key", ["top_p", "top_k", "min_p"])
def test_truncated_sampling_is_refused_in_training(tmp_path: Path, key: str) -> None:
    """Closes T39."""
    sentence = refusal(tmp_path, GOOD.replace("clip_low: 0.1", f"{key}: 0.9"))
    assert sentence.startswith(
        f"trial.yaml:15: stages.2.grpo takes no {key!r}: training samples come from the whole"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "trial.yaml is empty; a recipe has at least name, model and stages"),
        ("# only a comment\n", "trial.yaml is empty; a recipe has at least name, model and stages"),
        ("- a\n- b\n", "trial.yaml holds list where a recipe has keys such as name and stages"),
        ("name: [1, 2\n", "trial.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\tb: 1\n", "trial.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "trial.yaml:2: not valid YAML: but found another document"),
        ("a: !!python/name:os.system x\n", "trial.yaml:1: recipes use no YAML tags; remove"),
        ("a: !mine [1]\n", "trial.yaml:1: recipes use no YAML tags; remove '!mine'"),
        ("? [a, b]\n: 1\n", "trial.yaml:1: a key must be a word"),
        ("a: &x [*x]\n", "trial.yaml:1: an alias contains itself; write the value out"),
        ("a: \x00\n", "trial.yaml: not valid YAML: "),
    ],
)
def test_text_that_is_no_recipe_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, text).startswith(sentence)


def test_nested_aliases_cannot_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "the file holds more than 100000 values" in refusal(tmp_path, "\n".join(lines))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="is a folder; give a recipe file"):
        load_recipe(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match=r"is not UTF-8 text \(byte 6\)"):
        load_recipe(binary)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe(path).name == "trial"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 0.000001),
        ("5E+3", 5000.0),
        ("-1.5e2", -150.0),
        (".5", 0.5),
        ("10_000_000", 10000000),
        ("010", 10),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("2024-11-24", "2024-11-24"),
        ("1:30", "1:30"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("True", True),
        ("~", None),
        ("'1e-6'", "1e-6"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    """The core schema's examples: https://yaml.org/spec/1.2.2/#103-core-schema (and `_` between digits)."""
    read = read_yaml(f"key: {text}").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_an_alias_is_read_where_it_stands(tmp_path: Path) -> None:
    text = GOOD.replace("data: [{path: rows.jsonl}]", "data: &rows [{path: rows.jsonl}]")
    text = text.replace(
        "      data:\n        - path: pairs.jsonl\n          amount: 500\n", "      data: *rows\n"
    )
    recipe = load(tmp_path, text)
    assert recipe.stages[1].dpo is not None and recipe.stages[1].dpo.data[0].path == "rows.jsonl"


def test_a_recipe_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes" / "mine.yaml"
    mine.write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine").resolve() == mine
    assert find_recipe("recipes/mine.yaml").resolve() == mine
    assert find_recipe("quickstart").name == "quickstart.yaml"
    with pytest.raises(RecipeError, match="there is no recipe 'quickstrat'; did you mean 'quickstart'"):
        find_recipe("quickstrat")
    with pytest.raises(RecipeError, match=r"there is no recipe file other\.yaml"):
        find_recipe("other.yaml")
    with pytest.raises(RecipeError, match="there is no recipe file recipes; it is a folder"):
        find_recipe("recipes")
