"""The 25 published instruction types: replies that follow and that do not, by the published rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.rewards import instructions_format as marks
from posttrain.rewards.instructions import INSTRUCTIONS, check_instruction, loose_variants
from posttrain.rewards.instructions_keywords import keyword_pattern
from posttrain.rewards.instructions_language import detect_language

LESS, LEAST = "less than", "at least"

# id, kwargs, replies that follow it, replies that do not.
CASES = [
    ("punctuation:no_comma", {}, ["All good", "完成，好"], ["a, b", "a,b"]),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": LEAST},
        ["one two three", "don't go", "a_b c 1"],
        ["well-known", "one, two."],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["well-known"], ["don't go"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LEAST},
        ["Stop! Who is it? Dr. Smith came."],
        ["Dr. Smith came. He left."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LESS},
        ["Mr. Smith of the U.S. came. He left."],
        ["He came. He saw. He won."],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "dog"]},
        ["a category", "dogs", "cat_1"],
        ["Cat!", "a hot-dog"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["C++", "a["]},
        ["C is fine", "C++x", "a bracket"],
        ["use c++ now", "see a[ here"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b*", "*a**b*"],
        ["**bold one** text", "* *", "*a\nb* c"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 1},
        ["* item * x"],
        ["* item one\n* item two", "** **"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat ", "frequency": 2, "relation": LEAST},
        ["Cat and category"],
        ["cat", "c a t"],
    ),
    (
        "keywords:frequency",
        {"keyword": "c.t", "frequency": 2, "relation": LESS},
        ["cat"],
        ["cat cot"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["  write a POEM. Roses", "Write a poem."],
        ["Sure!\nWrite a poem. Roses", "Write a poem"],
    ),
    (
        "startend:quotation",
        {},
        ['"hi"', ' "hi" \n', '""'],
        ["“hi”", '"', '"hi', "'hi'", 'say "hi"'],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is a small house by the sea with 3 doors."],
        ["This is a small house.", "123 456", "dies ist ein kleines haus am meer mit drei türen."],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS A SMALL HOUSE BY THE SEA WITH 3 DOORS."],
        ["THIS IS A SMALL HOUSE, ISN't IT", "123 456", "ЭТО МАЛЕНЬКИЙ ДОМ У МОРЯ"],
    ),
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, ["categories of dogs", "CAT DOG"], ["cat", "dog"]),
    ("keywords:existence", {"keywords": ["(a"]}, ["see (a)"], ["see a"]),
    (
        "detectable_format:title",
        {},
        ["<<a>>", "x <<a b>> y", "<<<a>>>"],
        ["<<>>", "<< >>", "<<a\nb>>", "<a>"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 2, "let_relation": LEAST},
        ["Even", "e e"],
        ["one"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": LESS},
        ["Hey!", "no"],
        ["Hey!!"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["- a\n* b", "- a\n---", "  * a\n\n\t- b", "*a\n*b", "text\n- a\n-b\n**bold**"],
        ["- a\n* b\n---", "Here:\n* a\n* b\n- c", "1. a\n2. b", "**a\n**b"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das Wetter ist heute sehr schön und wir gehen spazieren."],
        ["The weather is very nice today and we go for a walk.", "123 !!"],
    ),
    (
        "language:response_language",
        {"language": "zh"},
        ["今天天气很好，我们去公园散步。"],
        ["한국은 아름다운 나라입니다."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b]", "[[a] and []"],
        ["[a]", "[a\n] [b]"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["***\na\n***\nb\n***", "a *** b", "a***b"],
        ["a\n\nb", "a\n***\n***\nb", "a *** b *** c", "a * * * b"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": " Any questions? "},
        ['bye. ANY QUESTIONS?"', "Any questions?\n"],
        ["bye. Any questions?\n*", "Any questions? Yes."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["bye p. s. hi", "Bye\nP.S. hi"],
        ["bye PS: hi", "P.S hi"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["bye\nP.P.S hi", "p. p. s hi"],
        ["bye P.S. hi"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["bye\nNOTE: hi"], ["bye note hi"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        ["I AM here.", "NASA's A team", "Well. NO. YES."],
        ["I am here", "WELL-KNOWN"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        ["One NASA"],
        ["NASA AND one"],
    ),
    (
        "combination:two_responses",
        {},
        ["******a******b******", "a\n******\nb"],
        ["a****** a", "a************b", "a", "a******b******c", "******a******"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['"hi"', "3", '```json\n{"a": 1}\n```', "```\n[]```", '```JSON {"a": 1} ```'],
        ["{'a': 1}", 'Here:\n```json\n{"a": 1}\n```', '{"a": 1', "[" * 100_000],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": " Section ", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section 2 Section 3"],
        ["SECTION 1\nSECTION 2", "Section 1\na", "Section A\nSection B"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "President"},
        ["a\n\n\"President's day", "a\n\npresident, yes", "a\n\n 'president."],
        [
            "a\n\n\n\nPresident day",
            "a\n\n**President** day",
            "President\n\na",
            "President",
            "a\n\n-president",
        ],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["Well. My answer is no. Sorry."],
        ["my answer is no.", "My answer is no"],
    ),
]


@pytest.mark.parametrize(
    ("name", "kwargs", "reply", "follows"),
    [
        pytest.param(name, kwargs, reply, follows, id=f"{name}-{follows}-{reply[:20]!r}")
        for name, kwargs, good, bad in CASES
        for follows, replies in ((True, good), (False, bad))
        for reply in replies
    ],
)
def test_published_rule(name: str, kwargs: dict[str, object], reply: str, follows: bool) -> None:
    passed, reason = check_instruction(name, kwargs, reply)
    assert passed is follows, reason
    assert reason


def test_all_25_types_are_covered() -> None:
    assert len(INSTRUCTIONS) == 25
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)


@pytest.mark.parametrize(("name", "kwargs"), [(name, kwargs) for name, kwargs, *_ in CASES])
@pytest.mark.parametrize("reply", ["", " \n\t "])
def test_an_empty_reply_never_passes(name: str, kwargs: dict[str, object], reply: str) -> None:
    assert check_instruction(name, kwargs, reply, benchmark=True) == (False, "the reply is empty")


def test_the_benchmark_can_let_undetectable_language_pass() -> None:
    """Closes T51. Only where the case is right does the published rule come to ask for the language."""
    for name, kwargs, reply in (
        ("language:response_language", {"language": "de"}, "123 !!"),
        ("change_case:english_capital", {}, "ⅠⅡ"),
    ):
        assert check_instruction(name, kwargs, reply) == (False, "the language cannot be detected")
        assert check_instruction(name, kwargs, reply, benchmark=True)[0] is True
    lower = check_instruction("change_case:english_lowercase", {}, "123 456", benchmark=True)
    assert lower == (False, "found no letters in lower case")


def test_english_in_capitals_is_english_except_to_the_benchmark() -> None:
    """Closes T48 for capitals: langdetect 1.0.9 takes this sentence in capitals for Vietnamese."""
    reply = "THE WEATHER IS VERY NICE TODAY."
    assert check_instruction("change_case:english_capital", {}, reply)[0] is True
    passed, reason = check_instruction("change_case:english_capital", {}, reply, benchmark=True)
    assert (passed, reason) == (False, 'the language looks like "vi", wanted "en"')


# (instruction, kwargs, reply, passes in one of the eight loose variants), from the published examples.
LOOSE = [
    ("punctuation:no_comma", {}, "Sure, here it is:\nAll good", True),
    ("length_constraints:number_words", {"num_words": 3, "relation": LEAST}, "well-known", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n* b\n---", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "Here:\n* a\n* b\n- c", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "1. a\n2. b", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "**bold one** text", False),
    ("detectable_format:json_format", {}, 'Here:\n```json\n{"a": 1}\n```', True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, "Sure!\nWrite a poem. Roses", True),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "bye. Any questions?\n*", True),
    ("startend:quotation", {}, "“hi”", False),
    ("change_case:english_lowercase", {}, "123 456", False),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "president"},
        "a\n\n**President** day",
        True,
    ),
    ("punctuation:no_comma", {}, "", False),
]


@pytest.mark.parametrize(("name", "kwargs", "reply", "loose"), LOOSE)
def test_loose_rule(name: str, kwargs: dict[str, object], reply: str, loose: bool) -> None:
    assert check_instruction(name, kwargs, reply)[0] is False
    assert any(check_instruction(name, kwargs, variant)[0] for variant in loose_variants(reply)) is loose


def test_the_eight_variants() -> None:
    assert loose_variants(" *a* \n b\n\n c ") == (
        " *a* \n b\n\n c ",
        " a \n b\n\n c ",
        "b\n\n c",
        "*a* \n b",
        "b",
        "b\n\n c",
        "a \n b",
        "b",
    )
    assert loose_variants("one") == ("one", "one", "", "", "", "", "", "")


TEXT = st.text(alphabet="*- a\n\t[]<>\u2028", max_size=30)
EXAMPLES = settings(max_examples=400, deadline=None, derandomize=True)


@EXAMPLES
@given(TEXT)
def test_scans_equal_the_published_expressions(reply: str) -> None:
    """The linear scans against the expressions of the reference, taken from its table of rules."""
    assert marks.count_bullets(reply, "*") == len(re.findall(r"^\s*\*[^\*].*$", reply, flags=re.MULTILINE))
    assert marks.count_bullets(reply, "-") == len(re.findall(r"^\s*-.*$", reply, flags=re.MULTILINE))
    assert [f"[{inner}]" for inner in marks.bracketed(reply)] == re.findall(r"\[.*?\]", reply)
    titles = [found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", reply)]
    assert marks.title(reply)[0] is any(titles)


@EXAMPLES
@given(st.text(alphabet="ab(.|)^$\\d1 ", min_size=1, max_size=12))
def test_keywords_are_expressions_where_they_compile(keyword: str) -> None:
    text = "ab 1 (a.b) a|b \\d"
    try:
        expected = re.findall(keyword, text, re.IGNORECASE)
    except re.error:
        expected = re.findall(re.escape(keyword), text, re.IGNORECASE)
    assert re.findall(keyword_pattern(keyword), text, re.IGNORECASE) == expected


@pytest.mark.parametrize(
    "keyword", ["(a+)+$", "(a*)*b", "(a|a)*b", "a{1,9}" * 5, "(a|a)" * 20 + "b", "[[a]", "(?<"]
)
def test_no_keyword_can_backtrack_without_end(keyword: str) -> None:
    """Closes T47 for keywords. As expressions the first five need hours on this reply."""
    reply = "a" * 5000 + "c " + keyword
    assert check_instruction("keywords:existence", {"keywords": [keyword]}, reply)[0] is True
    assert check_instruction("keywords:existence", {"keywords": [keyword]}, "a" * 5000 + "c")[0] is False


@pytest.mark.parametrize(
    "piece", ["\n", " ", "[", "<<", "*", "-", '"', "'", ".", "a", "A ", "{", ". ", "p.", "`", "é\n"]
)
@pytest.mark.parametrize(("name", "kwargs"), {name: kwargs for name, kwargs, *_ in CASES}.items())
def test_hostile_replies_finish(name: str, kwargs: dict[str, object], piece: str) -> None:
    """Closes T47. Where a rule took quadratic time these 40,000 characters would take minutes."""
    passed, reason = check_instruction(name, kwargs, piece * (40_000 // len(piece)))
    assert passed in (True, False) and isinstance(reason, str)


@pytest.mark.parametrize(
    "reply",
    ["The day was good and the sea was calm.", "Der Tag war gut.", "HELLO WORLD", "hello", "a b c d e"],
)
def test_languages_are_those_of_langdetect_with_seed_zero(
    monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    import langdetect

    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    assert detect_language(reply) == langdetect.detect(reply)
