"""The `ifeval` verifier: its examples, both forms of ground truth, verdicts, parts and reasons."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from posttrain.rewards.ifeval import ifeval
from posttrain.rewards.ifeval_examples import instruction, tulu
from posttrain.rewards.verifier import VERIFIERS

VERIFIER = VERIFIERS["ifeval"]


def test_it_has_twenty_examples_of_each_side() -> None:
    assert len(VERIFIER.accepts) >= 20
    assert len(VERIFIER.rejects) >= 20


@pytest.mark.parametrize(("reply", "ground_truth"), VERIFIER.accepts)
def test_accepts(reply: str, ground_truth: object) -> None:
    score = ifeval(reply, ground_truth)
    assert (score.value, score.verdict) == (1.0, "correct"), score.reason
    assert set(score.parts.values()) == {1.0}


@pytest.mark.parametrize(("reply", "ground_truth"), VERIFIER.rejects)
def test_rejects(reply: str, ground_truth: object) -> None:
    score = ifeval(reply, ground_truth)
    assert score.value == 0.0
    assert score.verdict in ("wrong", "unparseable")
    assert score.reason


BOTH = {
    "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
    "kwargs": [{"num_bullets": 3}, {}],
}


def test_parts_and_reason_say_what_was_seen() -> None:
    score = ifeval("- a\n- b\n- c\n- d", BOTH)
    assert score.value == 0.0
    assert score.parts == {"detectable_format:number_bullet_lists": 0.0, "punctuation:no_comma": 1.0}
    assert score.reason == "found 4 bullets, wanted exactly 3"


def test_one_failure_is_enough_for_zero_and_all_are_told() -> None:
    score = ifeval("- a, b", BOTH)
    assert score.reason == "found 1 bullet, wanted exactly 3; found 1 comma, wanted none"
    assert list(score.parts.values()) == [0.0, 0.0]


def test_a_repeated_instruction_keeps_its_own_part() -> None:
    """Seventeen prompts of the published data give one instruction twice, such as a range of words."""
    between = {
        "instruction_id_list": ["length_constraints:number_words"] * 2,
        "kwargs": [{"num_words": 2, "relation": "at least"}, {"num_words": 4, "relation": "less than"}],
    }
    assert ifeval("a b c", between).value == 1.0
    assert ifeval("a b c d", between).parts == {
        "length_constraints:number_words": 1.0,
        "length_constraints:number_words#2": 0.0,
    }


@pytest.mark.parametrize(
    "ground_truth", [BOTH, {"func_name": "verify_bullet_points", "N": 1, "quantifier": None}]
)
def test_the_ground_truth_is_never_changed(ground_truth: dict[str, object]) -> None:
    """The reference pops `func_name` out of the label, so that its second use fails."""
    before = copy.deepcopy(ground_truth)
    first = ifeval("- a", ground_truth)
    assert ground_truth == before
    assert ifeval("- a", ground_truth) == first


def test_dict_and_json_text_agree() -> None:
    for reply in ("- a\n- b\n- c", "- a,"):
        assert ifeval(reply, BOTH) == ifeval(reply, json.dumps(BOTH))
        short_name = {"instruction_id": BOTH["instruction_id_list"], "kwargs": BOTH["kwargs"]}
        assert ifeval(reply, BOTH) == ifeval(reply, short_name)


def test_nulls_are_absent_arguments() -> None:
    """Closes T12. Arrow fills the arguments that a row does not use with nulls; integers become floats."""
    kwargs = {"num_bullets": 1.0, "num_words": None, "relation": None}
    assert ifeval("- a", instruction("detectable_format:number_bullet_lists", **kwargs)).value == 1.0


@pytest.mark.parametrize(
    ("ground_truth", "says"),
    [
        ("not json", "not JSON"),
        (None, "must be an object"),
        ([BOTH], "must be an object"),
        ("[1]", "must be an object"),
        ({}, "func_name"),
        ({"instruction_id_list": [], "kwargs": []}, "not empty"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "kwargs"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "1 instructions but 2"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": ["x"]}, "must be an object"),
        (instruction("punctuation:no_commas"), "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": [{}], "kwargs": [{}]}, "there is no instruction"),
        (instruction("length_constraints:number_words", num_words=3), "needs relation"),
        (instruction("length_constraints:number_words", num_words=3, relation="around"), "relation must be"),
        (instruction("length_constraints:number_words", num_words=-1, relation="at least"), "whole number"),
        (instruction("length_constraints:number_words", num_words=True, relation="at least"), "whole number"),
        (instruction("length_constraints:number_words", num_words=2.5, relation="at least"), "whole number"),
        (instruction("detectable_format:title", num_words=3), "does not take num_words"),
        (instruction("keywords:existence", keywords=[]), "list of texts"),
        (instruction("keywords:existence", keywords="cat"), "list of texts"),
        (instruction("keywords:existence", keywords=["cat", " "]), "not blank"),
        (
            instruction("keywords:letter_frequency", letter="ab", let_frequency=1, let_relation="at least"),
            "one character",
        ),
        (instruction("language:response_language", language="german"), "language must be a code"),
        (
            instruction(
                "length_constraints:nth_paragraph_first_word",
                num_paragraphs=2,
                nth_paragraph=3,
                first_word="a",
            ),
            "between 1 and",
        ),
        ({"func_name": "verify_bullet_point", "N": 1}, "did you mean 'verify_bullet_points'"),
        ({"func_name": None}, "there is no constraint function"),
        (tulu("verify_bullet_points"), "needs N"),
        (tulu("validate_word_constraint", N=3, quantifier="less than"), "quantifier must be"),
        (tulu("validate_paragraphs", N=2, first_word="a", i=0), "between 1 and"),
        (tulu("validate_choice", options=[]), "list of texts"),
        (tulu("verify_letter_frequency", letter="ab", N=1), "one character"),
    ],
)
@pytest.mark.parametrize("reply", ["Some words, here.", ""])
def test_a_malformed_ground_truth_is_an_error_whatever_the_reply(
    ground_truth: object, says: str, reply: str
) -> None:
    with pytest.raises(ValueError, match=says):
        ifeval(reply, ground_truth)


GERMAN = instruction("language:response_language", language="de")
SHORT = "Der Tag war gut. The day was good."


def test_sixty_repeats_give_one_verdict() -> None:
    """Closes T51. Half German, half English: unseeded, langdetect answers now one and now the other."""
    scores = {(ifeval(SHORT, GERMAN).value, ifeval(SHORT, GERMAN).reason) for _ in range(60)}
    assert len(scores) == 1


def test_nobody_else_can_change_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closes T51."""
    from langdetect import DetectorFactory

    expected = ifeval(SHORT, GERMAN)
    monkeypatch.setattr(DetectorFactory, "seed", 12345)
    assert {ifeval(SHORT, GERMAN).reason for _ in range(20)} == {expected.reason}


def test_undetectable_language_is_its_own_verdict() -> None:
    """Closes T51. The reference counts such a reply as following any language."""
    score = ifeval("123 !!", GERMAN)
    assert (score.value, score.verdict) == (0.0, "unparseable")
    assert score.reason == "the language cannot be detected"


def test_undetectable_and_wrong_is_wrong() -> None:
    both = {
        "instruction_id_list": ["language:response_language", "detectable_format:title"],
        "kwargs": [{"language": "de"}, {}],
    }
    score = ifeval("123 !!", both)
    assert score.verdict == "wrong"
    assert score.reason == "the language cannot be detected; found no title in << >>"


def test_threads_agree_with_the_main_thread() -> None:
    """Closes T46 for this verifier: no signals, and the language profiles are loaded under a lock."""
    rows = [*VERIFIER.accepts, *VERIFIER.rejects]
    expected = [ifeval(reply, ground_truth) for reply, ground_truth in rows]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda row: ifeval(*row), rows)) == expected
