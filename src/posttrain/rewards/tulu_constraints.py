"""The constraint functions named by the `ifeval` rows of the Tülu 3 RLVR data.

Source: `open_instruct/if_functions.py` of allenai/open-instruct as of the Tülu 3 runs. What is here is what
each function was meant to check; where that differs from what it did, the docstring says "Fixed:".
Common to all: the reply's outer white space is dropped first, and an empty reply passes nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

from posttrain.rewards import instructions_format as marks
from posttrain.rewards import instructions_frame as frame
from posttrain.rewards import instructions_keywords as keywords
from posttrain.rewards import instructions_language as language
from posttrain.rewards.constraint import (
    Constraint,
    Result,
    at_least,
    counted,
    exactly,
    letter,
    quantifier,
    text,
    texts,
    whole_number,
)

_SENTENCE_END = re.compile(r"(?<!\w\.\w\.)(?<!\b[DJMS][rst]\.)(?<=[.?!])\s")
_BULLET = re.compile(r"[*-]\s+[*\-\s]*[^*\-\s]")
_CAPITAL_WORD = re.compile(r"\b[A-Z]+\b")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def verify_keywords(reply: str, words: list[str]) -> Result:
    """Every keyword is a substring, case ignored ("cat" in "category": as IFEval's own rule)."""
    missing = [word for word in words if word.lower() not in reply.lower()]
    return not missing, f"missing keywords: {missing}" if missing else "found every keyword"


def verify_keyword_frequency(reply: str, word: str, wanted: int) -> Result:
    """The word stands alone exactly N times, case ignored. Fixed: keywords of several words can match."""
    found = sum(1 for _ in _whole(word).finditer(reply))
    passed, reason = exactly(found, wanted, "time")
    return passed, f'"{word}": {reason}'


def validate_forbidden_words(reply: str, words: list[str]) -> Result:
    """No word stands alone in the reply, case ignored. Fixed: "art" no longer forbids "party"."""
    found = [word for word in words if _whole(word).search(reply)]
    return not found, f"found forbidden words: {found}" if found else "found no forbidden word"


def verify_letter_frequency(reply: str, char: str, wanted: int) -> Result:
    """The letter occurs exactly N times, in the case given."""
    passed, reason = exactly(reply.count(char), wanted, "time")
    return passed, f'the letter "{char}": {reason}'


def verify_paragraph_count(reply: str, wanted: int) -> Result:
    """Exactly N paragraphs divided by `* * *`. Fixed: a divider may open or close the reply."""
    parts = [part.strip() for part in reply.split("* * *")]
    if not all(parts[1:-1]):
        return False, f"found an empty paragraph between two dividers, wanted exactly {wanted} paragraphs"
    return exactly(sum(1 for part in parts if part), wanted, "paragraph")


def validate_word_constraint(reply: str, wanted: int, how: str) -> Result:
    """Words divided by white space; "around" allows a tenth of N, at least one."""
    return _quantified(len(reply.split()), how, wanted, max(round(wanted * 0.1), 1), "word")


def verify_sentence_constraint(reply: str, wanted: int, how: str) -> Result:
    """Pieces that end in `.`, `?` or `!` and white space; "around" allows one. `e.g.` and `Dr.` end none.

    Fixed: `!` ends a sentence; blank pieces are none; "Go." and "No." are, and not abbreviations.
    """
    sentences = [piece for piece in _SENTENCE_END.split(reply) if piece.strip()]
    return _quantified(len(sentences), how, wanted, 1, "sentence")


def validate_paragraphs(reply: str, wanted: int, first_word: str, nth: int) -> Result:
    """Exactly N paragraphs divided by blank lines, the i-th (from 1) opening with the word.

    Fixed: more than one blank line divides once; the word is compared whole, case ignored.
    """
    if not 1 <= nth <= wanted:
        raise ValueError(f"i must be between 1 and N = {wanted}, not {nth}")
    paragraphs = [part.strip() for part in _BLANK_LINE.split(reply) if part.strip()]
    passed, reason = exactly(len(paragraphs), wanted, "paragraph")
    if not passed:
        return False, reason
    opens = _whole(first_word.strip()).match(paragraphs[nth - 1]) is not None
    return opens, f'paragraph {nth} opens with {paragraphs[nth - 1][:30]!r}, wanted "{first_word}"'


def verify_postscript(reply: str, marker: str) -> Result:
    """Something follows the last occurrence of the marker. Fixed: the reference looked at the first one."""
    _, found, after = reply.rpartition(marker.strip())
    if not found:
        return False, f'did not find the postscript "{marker}"'
    return bool(
        after.strip()
    ), f'found the postscript "{marker}" with {counted(len(after.strip()), "character")}'


def validate_placeholders(reply: str, wanted: int) -> Result:
    """At least N of `[...]`. Fixed: the reference gave a pair, which is always true; empty ones counted."""
    return at_least(sum(1 for inner in marks.bracketed(reply) if inner.strip()), wanted, "placeholder")


def verify_bullet_points(reply: str, wanted: int) -> Result:
    """Exactly N lines of `*` or `-`, a space and a text. Fixed: `**bold**` and `---` are no bullets."""
    found = sum(1 for line in reply.split("\n") if _BULLET.match(line.strip()))
    return exactly(found, wanted, "bullet")


def validate_choice(reply: str, options: list[str]) -> Result:
    """One of the options stands alone in the reply, and no other does, case counted.

    Fixed: the reference looked for the reply in the options; then it took "A" in "Apple", and every option
    listed at once. An option that is part of a longer one found ("yes" of "yes, please") is not another.
    """
    found = {option.strip() for option in options if _whole(option.strip(), flags=0).search(reply)}
    chosen = sorted(one for one in found if not any(one != other and one in other for other in found))
    return len(chosen) == 1, f"found {len(chosen)} of the options {options}, wanted one"


def validate_sections(reply: str, wanted: int, splitter: str) -> Result:
    """Exactly N lines that open with the splitter and a number, such as `Section 1` or `**Section 1**`.

    Fixed: text before the first section is not a section, and mentions inside a line are not marks.
    """
    mark = re.compile(rf"^[ \t#*_>]*{re.escape(splitter.strip())}\s?\d+", re.MULTILINE)
    return exactly(sum(1 for _ in mark.finditer(reply)), wanted, "section")


def validate_json_format(reply: str) -> Result:
    """A JSON object or list, a code fence around it allowed. Fixed: fences failed, bare numbers passed."""
    passed, reason = marks.json_format(reply)
    if passed and marks.unfenced(reply)[:1] not in ("{", "["):
        return False, "found a bare JSON value, wanted an object or a list"
    return passed, reason


def validate_repeat_prompt(reply: str, prompt: str) -> Result:
    """The reply opens with the request, letter for letter."""
    return reply.startswith(prompt.strip()), f"the reply opens with {reply[:40]!r}, wanted the request"


def validate_frequency_capital_words(reply: str, wanted: int, how: str) -> Result:
    """Words in ASCII capitals ("I" counts). Fixed: "around" allows a tenth of N, at least one."""
    found = sum(1 for _ in _CAPITAL_WORD.finditer(reply))
    return _quantified(found, how, wanted, max(round(wanted * 0.1), 1), "all-capital word")


def validate_end(reply: str, phrase: str) -> Result:
    """The reply ends with the phrase, letter for letter."""
    return reply.endswith(phrase.strip()), f"the reply ends with {reply[-40:]!r}, wanted {phrase.strip()!r}"


def _whole(word: str, *, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", flags)


def _quantified(count: int, how: str, wanted: int, tolerance: int, noun: str) -> Result:
    low = wanted - tolerance if how == "around" else wanted if how == "at least" else 0
    high = wanted + tolerance if how == "around" else wanted if how == "at most" else count
    return low <= count <= high, f"found {counted(count, noun)}, wanted {how} {wanted}"


def _options(name: str, value: Any) -> list[str]:
    """A list of options, or one text that names them with commas between."""
    return texts(
        name, [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    )


def _stripped(check: Callable[..., Result]) -> Callable[..., Result]:
    return lambda reply, *arguments: check(reply.strip(), *arguments)


_NUMBER = ("N", whole_number)
_HOW = ("quantifier", quantifier)
_TABLE: dict[str, tuple[Callable[..., Result], tuple[tuple[str, Callable[[str, Any], Any]], ...]]] = {
    "verify_keywords": (verify_keywords, (("keyword_list", texts),)),
    "verify_keyword_frequency": (verify_keyword_frequency, (("word", text), _NUMBER)),
    "validate_forbidden_words": (validate_forbidden_words, (("forbidden_words", texts),)),
    "verify_letter_frequency": (verify_letter_frequency, (("letter", letter), _NUMBER)),
    # Fixed: seeded, and undetectable text neither raises nor passes.
    "validate_response_language": (language.response_language, (("language", text),)),
    "verify_paragraph_count": (verify_paragraph_count, (_NUMBER,)),
    "validate_word_constraint": (validate_word_constraint, (_NUMBER, _HOW)),
    "verify_sentence_constraint": (verify_sentence_constraint, (_NUMBER, _HOW)),
    "validate_paragraphs": (validate_paragraphs, (_NUMBER, ("first_word", text), ("i", whole_number))),
    "verify_postscript": (verify_postscript, (("postscript_marker", text),)),
    "validate_placeholders": (validate_placeholders, (_NUMBER,)),
    "verify_bullet_points": (verify_bullet_points, (_NUMBER,)),
    # Fixed: an empty << >> is no title.
    "validate_title": (marks.title, ()),
    "validate_choice": (validate_choice, (("options", _options),)),
    # Fixed: `**bold**` is one highlight and not two empty ones.
    "validate_highlighted_sections": (marks.number_highlighted_sections, (_NUMBER,)),
    "validate_sections": (validate_sections, (_NUMBER, ("section_splitter", text))),
    "validate_json_format": (validate_json_format, ()),
    "validate_repeat_prompt": (validate_repeat_prompt, (("original_prompt", text),)),
    # Fixed: neither half may be empty; a divider may open or close.
    "validate_two_responses": (frame.two_responses, ()),
    # Fixed: these want letters, and English, as their instruction says.
    "validate_uppercase": (language.english_capital, ()),
    "validate_lowercase": (language.english_lowercase, ()),
    "validate_frequency_capital_words": (validate_frequency_capital_words, (_NUMBER, _HOW)),
    "validate_end": (validate_end, (("end_phrase", text),)),
    # Fixed: a lone quotation mark does not wrap anything.
    "validate_quotation": (frame.quotation, ()),
    "validate_no_commas": (keywords.no_comma, ()),
}

TULU_CONSTRAINTS: dict[str, Constraint] = {
    name: Constraint(_stripped(check), arguments) for name, (check, arguments) in _TABLE.items()
}


def find_tulu_constraint(name: str) -> Constraint:
    """The constraint with this function name; a ValueError that names the nearest one if there is none."""
    if not isinstance(name, str) or name not in TULU_CONSTRAINTS:
        near = difflib.get_close_matches(str(name), TULU_CONSTRAINTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no constraint function {name!r}{hint}")
    return TULU_CONSTRAINTS[name]
