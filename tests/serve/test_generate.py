"""`posttrain generate`: rows in order, by the same engine, renderer and seeds as everything else."""

from __future__ import annotations

import pytest

from posttrain.errors import ModelError, RecipeError
from posttrain.records import Message
from posttrain.rollout.sampler import Request, Sampling
from posttrain.serve import generate as module
from posttrain.serve.generate import conversation, generate
from posttrain.train.seeds import seed_of

PROMPTS = ["How are you?", "数学 and 🙂", "Count to three."]


@pytest.fixture(autouse=True)
def no_second_load(opened, monkeypatch):
    """The engine that the session has; what was asked for is noted."""
    asked = []
    monkeypatch.setattr(
        module, "open_engine", lambda name, **options: asked.append((name, options)) or opened
    )
    return asked


def test_rows_come_in_order_with_every_sample(opened):
    engine, renderer = opened
    rows = list(generate("m", iter(PROMPTS), num_samples=2, max_new_tokens=9, seed=3))
    assert [(row["prompt"], row["sample"]) for row in rows] == [(p, s) for p in PROMPTS for s in range(2)]
    for place, prompt in enumerate(PROMPTS):
        ids = renderer.prompt([Message("user", prompt)])
        seeds = (seed_of(3, place, 0), seed_of(3, place, 1))
        for sample, completion in enumerate(
            engine.generate([Request(ids, seeds)], Sampling(max_new_tokens=9))[0]
        ):
            row = rows[2 * place + sample]
            assert row["output"] == completion.text
            assert row["stop_reason"] == completion.stop_reason
            assert row["num_tokens"] == len(completion.ids)
    assert set(rows[0]) == {"prompt", "sample", "output", "stop_reason", "num_tokens"}


def test_the_seed_decides():
    def outputs(seed):
        return [row["output"] for row in generate("m", PROMPTS, max_new_tokens=9, seed=seed)]

    assert outputs(1) == outputs(1)
    assert outputs(1) != outputs(2)


def test_settings_reach_the_sampler(opened):
    engine, renderer = opened
    (row,) = generate("m", PROMPTS[:1], temperature=0.0, max_new_tokens=7, system="Be brief.")
    ids = renderer.prompt([Message("system", "Be brief."), Message("user", PROMPTS[0])])
    greedy = Sampling(temperature=0.0, max_new_tokens=7)
    assert row["output"] == engine.generate([Request(ids, (0,))], greedy)[0][0].text
    (narrow,) = generate("m", PROMPTS[:1], temperature=5.0, top_p=1e-9, max_new_tokens=7, system="Be brief.")
    assert narrow["output"] == row["output"]  # a nucleus of one token is greedy


def test_model_template_and_device_are_passed_on(no_second_load):
    list(generate("some-model", [], chat_template="tulu", device="cpu"))
    assert no_second_load == [("some-model", {"chat_template": "tulu", "device": "cpu"})]


def test_a_prompt_that_is_too_long_says_so():
    with pytest.raises(RecipeError, match="512"):
        list(generate("m", ["word " * 600], max_new_tokens=9))


def test_system_comes_first():
    assert conversation("hi", None) == [Message("user", "hi")]
    assert conversation("hi", "be kind") == [Message("system", "be kind"), Message("user", "hi")]


def test_a_folder_without_a_model_says_so(monkeypatch, tmp_path):
    monkeypatch.undo()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        list(generate(str(tmp_path), ["hi"]))
