"""The 25 instruction types of IFEval by their ids, and the loose variants of a reply.

The rules are the published ones (arXiv:2311.07911, google-research `instruction_following_eval`), but nothing
is random: a missing argument is an error, `#` and `!` are counted as such, language detection is seeded.
Keywords that are unsafe patterns are literal. Two quirks are left to the benchmark alone: a language that
cannot be detected passes, and the language of a text in capitals is read from the capitals.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from posttrain.rewards import instructions_format as marks
from posttrain.rewards import instructions_frame as frame
from posttrain.rewards import instructions_keywords as keywords
from posttrain.rewards import instructions_language as language
from posttrain.rewards import instructions_length as length
from posttrain.rewards.constraint import Constraint, letter, relation, text, texts, whole_number

INSTRUCTIONS: dict[str, Constraint] = {
    "keywords:existence": Constraint(keywords.existence, (("keywords", texts),)),
    "keywords:frequency": Constraint(
        keywords.frequency, (("keyword", text), ("frequency", whole_number), ("relation", relation))
    ),
    "keywords:forbidden_words": Constraint(keywords.forbidden_words, (("forbidden_words", texts),)),
    "keywords:letter_frequency": Constraint(
        keywords.letter_frequency,
        (("letter", letter), ("let_frequency", whole_number), ("let_relation", relation)),
    ),
    "punctuation:no_comma": Constraint(keywords.no_comma),
    "language:response_language": Constraint(language.response_language, (("language", text),)),
    "change_case:english_lowercase": Constraint(language.english_lowercase),
    "change_case:english_capital": Constraint(language.english_capital),
    "change_case:capital_word_frequency": Constraint(
        language.capital_word_frequency,
        (("capital_frequency", whole_number), ("capital_relation", relation)),
    ),
    "length_constraints:number_words": Constraint(
        length.number_words, (("num_words", whole_number), ("relation", relation))
    ),
    "length_constraints:number_sentences": Constraint(
        length.number_sentences, (("num_sentences", whole_number), ("relation", relation))
    ),
    "length_constraints:number_paragraphs": Constraint(
        length.number_paragraphs, (("num_paragraphs", whole_number),)
    ),
    "length_constraints:nth_paragraph_first_word": Constraint(
        length.nth_paragraph_first_word,
        (("num_paragraphs", whole_number), ("nth_paragraph", whole_number), ("first_word", text)),
    ),
    "detectable_format:number_bullet_lists": Constraint(
        marks.number_bullet_lists, (("num_bullets", whole_number),)
    ),
    "detectable_format:number_highlighted_sections": Constraint(
        marks.number_highlighted_sections, (("num_highlights", whole_number),)
    ),
    "detectable_format:title": Constraint(marks.title),
    # "spliter" is how the published data spells it.
    "detectable_format:multiple_sections": Constraint(
        marks.multiple_sections, (("section_spliter", text), ("num_sections", whole_number))
    ),
    "detectable_format:json_format": Constraint(marks.json_format),
    "detectable_format:constrained_response": Constraint(marks.constrained_response),
    "detectable_content:number_placeholders": Constraint(
        marks.number_placeholders, (("num_placeholders", whole_number),)
    ),
    "detectable_content:postscript": Constraint(marks.postscript, (("postscript_marker", text),)),
    "combination:repeat_prompt": Constraint(frame.repeat_prompt, (("prompt_to_repeat", text),)),
    "combination:two_responses": Constraint(frame.two_responses),
    "startend:end_checker": Constraint(frame.end_checker, (("end_phrase", text),)),
    "startend:quotation": Constraint(frame.quotation),
}

BENCHMARK_QUIRKS: dict[str, Constraint] = {
    "change_case:english_capital": Constraint(language.english_capital_published),
}
"""What replaces a training rule where a benchmark's score must be comparable."""


def find_instruction(instruction_id: str) -> Constraint:
    """The constraint with this id; a ValueError that names the nearest one if there is none."""
    if not isinstance(instruction_id, str) or instruction_id not in INSTRUCTIONS:
        near = difflib.get_close_matches(str(instruction_id), INSTRUCTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no instruction {instruction_id!r}{hint}")
    return INSTRUCTIONS[instruction_id]


def check_instruction(
    instruction_id: str, kwargs: Mapping[str, Any], response: str, *, benchmark: bool = False
) -> tuple[bool, str]:
    """Whether `response` as it stands follows one instruction, and why; ValueError if that is malformed.

    With `benchmark`, a response whose language cannot be detected follows, as the published rule has it (in
    training "123 !!" would be a good answer in any language), and `BENCHMARK_QUIRKS` hold.
    """
    constraint = find_instruction(instruction_id)
    if benchmark:
        constraint = BENCHMARK_QUIRKS.get(instruction_id, constraint)
    outcome = constraint.judge(instruction_id, kwargs, response)
    return outcome.passed or (outcome.undetectable and benchmark), outcome.reason


def loose_variants(response: str) -> tuple[str, ...]:
    """The eight variants of which the loose benchmark rule wants one to pass, in published order.

    The response, then it without its first line, without its last, without both (each stripped); all with and
    without asterisks. An empty variant never passes: `check_instruction` sees to that.
    """
    lines = response.split("\n")
    shortened = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    bare = [variant.replace("*", "") for variant in (response, *shortened)]
    return (response, bare[0], *shortened, *bare[1:])
