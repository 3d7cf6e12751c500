"""The constraint functions of the Tülu RLVR data: what was meant, and each fault of the reference mended."""

from __future__ import annotations

import pytest

from posttrain.rewards.ifeval import ifeval
from posttrain.rewards.ifeval_examples import tulu
from posttrain.rewards.tulu_constraints import TULU_CONSTRAINTS

LEAST, MOST, AROUND = "at least", "at most", "around"

# function, arguments, replies that pass, replies that do not.
CASES = [
    ("verify_keywords", {"keyword_list": ["Cat", "dog"]}, ["categories of DOGS"], ["cat", "dog"]),
    (
        "verify_keyword_frequency",
        {"word": "cat", "N": 2},
        ["Cat, cat"],
        ["cat", "cat cat cat", "cat category"],
    ),
    ("verify_keyword_frequency", {"word": "ice cream", "N": 1}, ["Ice cream!"], ["ice", "ice creams"]),
    ("validate_forbidden_words", {"forbidden_words": ["art"]}, ["a party"], ["ART.", "an art"]),
    ("verify_letter_frequency", {"letter": "a", "N": 2}, ["a bAat"], ["a", "aaa", "AA"]),
    (
        "validate_response_language",
        {"language": "en"},
        ["The weather is very nice today and we go for a walk."],
        ["Das Wetter ist heute sehr schön und wir gehen spazieren.", "12"],
    ),
    (
        "verify_paragraph_count",
        {"N": 2},
        ["a\n* * *\nb", "* * *\na\n* * *\nb"],
        ["a", "a\n* * *\n* * *\nb", "a***b"],
    ),
    ("validate_word_constraint", {"N": 3, "quantifier": LEAST}, ["a b c", " a-b c\nd e"], ["a b"]),
    ("validate_word_constraint", {"N": 3, "quantifier": MOST}, ["a b c", "a"], ["a b c d"]),
    # round(0.1 * 20) = 2: from 18 to 22 words.
    (
        "validate_word_constraint",
        {"N": 20, "quantifier": AROUND},
        ["a " * 18, "a " * 22],
        ["a " * 17, "a " * 23],
    ),
    # At least one word of tolerance.
    ("validate_word_constraint", {"N": 2, "quantifier": AROUND}, ["a", "a b c"], ["a b c d"]),
    (
        "verify_sentence_constraint",
        {"N": 3, "quantifier": LEAST},
        ["Stop! Go. Why? "],
        ["Stop! Go. ", "e.g. Dr. X came."],
    ),
    (
        "verify_sentence_constraint",
        {"N": 2, "quantifier": MOST},
        ["Dr. Who came. He left.  "],
        ["One. Two. Three."],
    ),
    (
        "verify_sentence_constraint",
        {"N": 3, "quantifier": AROUND},
        ["One. Two.", "A. B. C. D."],
        ["One.", "A. B. C. D. E."],
    ),
    (
        "validate_paragraphs",
        {"N": 2, "first_word": "today", "i": 2},
        ["a\n\nToday is", "a\n\n\ntoday, yes", "a\n \ntoday"],
        ["a\n\ntodays", "today\n\na", "a\n\nb\n\ntoday", "a\ntoday"],
    ),
    (
        "verify_postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. hi", "P.S. a\nP.S. b"],
        ["Bye", "Bye P.S.", "P.S. a\nP.S."],
    ),
    ("validate_placeholders", {"N": 2}, ["[a] [b c]"], ["[a]", "[a] []", "none"]),
    (
        "verify_bullet_points",
        {"N": 2},
        ["* a\n- b", "text\n  * **a**\n* b\n**c**\n---\n* * *"],
        ["* a", "**a**\n---", "*a\n*b"],
    ),
    ("validate_title", {}, ["<<Hope>>\ntext"], ["<<>>", "< a >", "<<a\nb>>"]),
    (
        "validate_choice",
        {"options": ["yes", "yes, please", "no"]},
        ["I say yes", "yes, please!"],
        ["Yes", "yes or no", "yesterday", "y"],
    ),
    ("validate_choice", {"options": "red, dark blue"}, ["it is dark blue"], ["blue", "red, dark blue"]),
    ("validate_highlighted_sections", {"N": 2}, ["*a* and **b**"], ["**a**", "* *  * *", "****"]),
    (
        "validate_sections",
        {"N": 2, "section_splitter": "Section"},
        ["Section 1\na\nSection 2\nb, see Section 1", "Intro\n## Section 1\n**Section 2**"],
        ["Section 1", "Section one\nSection two", "Section 1\nSection 2\nSection 3"],
    ),
    (
        "validate_json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```", "```JSON\n[1]\n```"],
        ["7", '"a"', "```\n7\n```", "{'a': 1}"],
    ),
    (
        "validate_repeat_prompt",
        {"original_prompt": "Say hi."},
        ["\nSay hi. Hi!"],
        ["say hi. Hi!", "Sure. Say hi."],
    ),
    (
        "validate_two_responses",
        {},
        ["a\n******\nb", "a******b******"],
        ["a", "******b", "a******a", "a************b"],
    ),
    ("validate_uppercase", {}, ["THE WEATHER IS VERY NICE TODAY."], ["The weather", "12"]),
    ("validate_lowercase", {}, ["the weather is very nice today."], ["The weather", "12"]),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": LEAST}, ["I AM"], ["I am"]),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": MOST}, ["I AM"], ["I AM HERE"]),
    (
        "validate_frequency_capital_words",
        {"N": 2, "quantifier": AROUND},
        ["I", "I AM", "I AM HERE"],
        ["none", "A B C D"],
    ),
    ("validate_end", {"end_phrase": "The end."}, ["Bye. The end.\n"], ["Bye. The End.", "The end. Bye"]),
    ("validate_quotation", {}, ['"a"\n'], ['"', '"a', "'a'"]),
    ("validate_no_commas", {}, ["a b"], ["a, b"]),
]


@pytest.mark.parametrize(
    ("name", "arguments", "reply", "passes"),
    [
        pytest.param(name, arguments, reply, passes, id=f"{name}-{passes}-{reply[:20]!r}")
        for name, arguments, good, bad in CASES
        for passes, replies in ((True, good), (False, bad))
        for reply in replies
    ],
)
def test_what_was_meant(name: str, arguments: dict[str, object], reply: str, passes: bool) -> None:
    score = ifeval(reply, tulu(name, **arguments))
    assert score.value == float(passes), score.reason
    assert score.parts == {name: float(passes)}


def test_all_functions_are_covered() -> None:
    assert {name for name, *_ in CASES} == set(TULU_CONSTRAINTS)
    assert len(TULU_CONSTRAINTS) == 25


@pytest.mark.parametrize(("name", "arguments"), [(name, arguments) for name, arguments, *_ in CASES])
def test_an_empty_reply_never_passes(name: str, arguments: dict[str, object]) -> None:
    assert ifeval(" \n", tulu(name, **arguments)).value == 0.0


def test_undetectable_language_is_unparseable() -> None:
    """Closes T51 for the Tülu form, where the reference raises."""
    assert ifeval("12 34", tulu("validate_response_language", language="en")).verdict == "unparseable"
