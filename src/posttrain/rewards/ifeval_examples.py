"""What the `ifeval` verifier must accept and reject: the tricky pairs of the published rules, and Tülu's."""

from __future__ import annotations

import json
from typing import Any


def instruction(instruction_id: str, **kwargs: Any) -> dict[str, Any]:
    """The ground truth that asks for one instruction."""
    return {"instruction_id_list": [instruction_id], "kwargs": [kwargs]}


def tulu(func_name: str, **kwargs: Any) -> str:
    """The ground truth of a Tülu RLVR row: JSON with its unused arguments null."""
    unused = dict.fromkeys(("N", "quantifier", "keyword_list", "end_phrase", "options"))
    return json.dumps({"func_name": func_name, **unused, **kwargs})


NO_COMMA = instruction("punctuation:no_comma")
THREE_WORDS = instruction("length_constraints:number_words", num_words=3, relation="at least")
TWO_BULLETS = instruction("detectable_format:number_bullet_lists", num_bullets=2)
TWO_PARAGRAPHS = instruction("length_constraints:number_paragraphs", num_paragraphs=2)
POSTSCRIPT = instruction("detectable_content:postscript", postscript_marker="P.S.")
NO_CAT = instruction("keywords:forbidden_words", forbidden_words=["cat"])
JSON_ONLY = instruction("detectable_format:json_format")
TWO_RESPONSES = instruction("combination:two_responses")
REPEAT = instruction("combination:repeat_prompt", prompt_to_repeat="Write a poem.")
QUESTIONS = instruction("startend:end_checker", end_phrase="Any questions?")
QUOTED = instruction("startend:quotation")
LOWER = instruction("change_case:english_lowercase")
UPPER = instruction("change_case:english_capital")
GERMAN = instruction("language:response_language", language="de")
PRESIDENT = instruction(
    "length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=2, first_word="president"
)
TITLE = instruction("detectable_format:title")
HASHES = instruction("keywords:letter_frequency", letter="#", let_frequency=2, let_relation="at least")
TWO_AT_ONCE = {
    "instruction_id": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [None, {"num_words": 4, "relation": "less than"}],
}

ACCEPTS: list[tuple[str, Any]] = [
    ("完成，好", NO_COMMA),
    ("don't go", THREE_WORDS),
    ("- a\n* b", TWO_BULLETS),
    ("- a\n---", TWO_BULLETS),
    ("* a\n**bold** words\n* b", TWO_BULLETS),
    (
        "a **bold** and an *italic* word",
        instruction("detectable_format:number_highlighted_sections", num_highlights=2),
    ),
    ("* item * x", instruction("detectable_format:number_highlighted_sections", num_highlights=1)),
    ("***\na\n***\nb\n***", TWO_PARAGRAPHS),
    ("bye p. s. hi", POSTSCRIPT),
    ("a category", NO_CAT),
    ('"hi"', JSON_ONLY),
    ('```json\n{"a": 1}\n```', JSON_ONLY),
    ("******a******b******", TWO_RESPONSES),
    ("write a POEM. Roses are red", REPEAT),
    ('bye. ANY QUESTIONS?"', QUESTIONS),
    ('"hi"', QUOTED),
    ("the old lighthouse stands on a rock and guides the ships.", LOWER),
    ("THE OLD LIGHTHOUSE STANDS ON A ROCK AND GUIDES THE SHIPS.", UPPER),
    ("Das Wetter ist heute sehr schön und wir gehen spazieren.", GERMAN),
    ("a\n\n\"President's day", PRESIDENT),
    ("<<a>>", TITLE),
    ("one # two #", HASHES),
    ("three short words", TWO_AT_ONCE),
    ("three short words", json.dumps(TWO_AT_ONCE)),
    ("I choose red", tulu("validate_choice", options=["red", "blue"])),
    ("Dear [name], I live in [city].", tulu("validate_placeholders", N=2)),
    ("Stop! Go. Wait?", tulu("verify_sentence_constraint", N=3, quantifier="at least")),
    ("```\n[1, 2]\n```", tulu("validate_json_format")),
]

REJECTS: list[tuple[str, Any]] = [
    ("", NO_COMMA),
    (" \n", instruction("length_constraints:number_words", num_words=3, relation="less than")),
    ("Sure, here it is:\nAll good", NO_COMMA),
    ("well-known", THREE_WORDS),
    ("- a\n* b\n---", TWO_BULLETS),
    ("Here:\n* a\n* b\n- c", TWO_BULLETS),
    ("1. a\n2. b", TWO_BULLETS),
    ("**bold one** text", instruction("detectable_format:number_highlighted_sections", num_highlights=2)),
    (
        "* item one\n* item two",
        instruction("detectable_format:number_highlighted_sections", num_highlights=1),
    ),
    ("a\n***\n***\nb", TWO_PARAGRAPHS),
    ("bye PS: hi", POSTSCRIPT),
    ("Cat!", NO_CAT),
    ('Here:\n```json\n{"a": 1}\n```', JSON_ONLY),
    ("{'a': 1}", JSON_ONLY),
    ("a****** a", TWO_RESPONSES),
    ("a************b", TWO_RESPONSES),
    ("Sure!\nWrite a poem. Roses", REPEAT),
    ("bye. Any questions?\n*", QUESTIONS),
    ("“hi”", QUOTED),
    ('"', QUOTED),
    ("123 456", LOWER),
    ("The old lighthouse stands on a rock.", LOWER),
    ("das wetter ist heute sehr schön und wir gehen spazieren.", LOWER),
    ("123 !!", GERMAN),
    ("a\n\n\n\nPresident day", PRESIDENT),
    ("a\n\n**President** day", PRESIDENT),
    ("<<  >>", TITLE),
    ("one # and no more", HASHES),
    ("three, short words", TWO_AT_ONCE),
    ("", tulu("validate_choice", options=["red", "blue"])),
    ("red or blue", tulu("validate_choice", options=["red", "blue"])),
    ("Dear [name], I live in a city.", tulu("validate_placeholders", N=2)),
    ("**bold**\n---", tulu("verify_bullet_points", N=2)),
    ("7", tulu("validate_json_format")),
]
