"""IFEval instructions about words, letters and commas that must or must not occur.

Source of every rule: `instruction_following_eval/instructions.py` of google-research (arXiv:2311.07911).
"""

from __future__ import annotations

import re

from posttrain.rewards.constraint import Result, counted, related

_NOT_A_PATTERN = frozenset("*+?{[")
_MAX_ALTERNATIVES = 4


def keyword_pattern(keyword: str, *, whole_word: bool = False) -> str:
    r"""The regular expression that a keyword of the data stands for.

    The published rule takes the keyword itself as the expression, between `\b` if `whole_word`. It is taken
    literally where that does not compile, and where it holds a repetition or a set (`C++`, `why?`, `[me]`):
    those can backtrack without end, and no keyword of the published data means them.
    """
    pattern = r"\b" + keyword + r"\b" if whole_word else keyword
    if _NOT_A_PATTERN.isdisjoint(keyword) and keyword.count("|") <= _MAX_ALTERNATIVES:
        try:
            re.compile(pattern)
        except re.error:
            pass
        else:
            return pattern
    literal = re.escape(keyword)
    # \b after "C++" would ask for a word character there; these ask that none stands there.
    return rf"(?<!\w){literal}(?!\w)" if whole_word else literal


def existence(reply: str, keywords: list[str]) -> Result:
    """Every keyword is found, case ignored, also inside longer words."""
    missing = [word for word in keywords if not re.search(keyword_pattern(word), reply, re.IGNORECASE)]
    return not missing, f"did not find {_quoted(missing)}" if missing else f"found {_quoted(keywords)}"


def frequency(reply: str, keyword: str, wanted: int, relation: str) -> Result:
    """Occurrences of the keyword, case ignored, also inside longer words, against `wanted`."""
    found = sum(1 for _ in re.finditer(keyword_pattern(keyword.strip()), reply, re.IGNORECASE))
    passed, reason = related(found, relation, wanted, "time")
    return passed, f'"{keyword.strip()}": {reason}'


def forbidden_words(reply: str, words: list[str]) -> Result:
    """None of the words is found as a whole word, case ignored."""
    found = [
        word
        for word in words
        if re.search(keyword_pattern(word, whole_word=True), reply, flags=re.IGNORECASE)
    ]
    return not found, f"found the forbidden {_quoted(found)}" if found else "found no forbidden word"


def letter_frequency(reply: str, letter: str, wanted: int, relation: str) -> Result:
    """Occurrences of one character, case ignored, against `wanted`.

    Differs from the reference on keys 1122 (`#`) and 1129 (`!`): it draws a random letter for them.
    """
    found = reply.lower().count(letter.lower())
    passed, reason = related(found, relation, wanted, "time")
    return passed, f'the letter "{letter}": {reason}'


def no_comma(reply: str) -> Result:
    """No ASCII comma; commas of other scripts are allowed."""
    return "," not in reply, f"found {counted(reply.count(','), 'comma')}, wanted none"


def _quoted(words: list[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
