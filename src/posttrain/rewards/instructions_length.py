"""IFEval instructions about how many words, sentences and paragraphs a reply has.

Source of every rule: `instruction_following_eval/instructions.py` of google-research (arXiv:2311.07911).
"""

from __future__ import annotations

import re

from posttrain.rewards.constraint import Result, exactly, related

_WORD = re.compile(r"\w+")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_WORD_ENDS = frozenset(".,?!'\"")


def split_sentences(reply: str) -> list[str]:
    """English sentences by Punkt, without nltk's data files."""
    import punkt

    return list(punkt.sent_tokenize(reply))


def number_words(reply: str, wanted: int, relation: str) -> Result:
    r"""`\w+` runs against `wanted`: "don't" is two words, "well-known" too."""
    return related(sum(1 for _ in _WORD.finditer(reply)), relation, wanted, "word")


def number_sentences(reply: str, wanted: int, relation: str) -> Result:
    """Punkt sentences against `wanted`."""
    return related(len(split_sentences(reply)), relation, wanted, "sentence")


def number_paragraphs(reply: str, wanted: int) -> Result:
    """Exactly `wanted` paragraphs divided by `***`; a divider may open or close, none may be empty."""
    paragraphs = _DIVIDER.split(reply)
    inner = paragraphs[1:-1]
    if any(not paragraph.strip() for paragraph in inner):
        return False, f"found an empty paragraph between two ***, wanted exactly {wanted} paragraphs"
    return exactly(sum(1 for paragraph in paragraphs if paragraph.strip()), wanted, "paragraph")


def nth_paragraph_first_word(reply: str, wanted: int, nth: int, first_word: str) -> Result:
    """Exactly `wanted` paragraphs divided by blank lines, the `nth` of which (from 1) opens with the word.

    `nth` counts empty paragraphs too (three line breaks in a row make none, four make one), `wanted` does
    not. The word is compared in lower case, without quotation marks before and punctuation after it.
    """
    if not 1 <= nth <= wanted:
        raise ValueError(f"nth_paragraph must be between 1 and num_paragraphs = {wanted}, not {nth}")
    paragraphs = reply.split("\n\n")
    passed, reason = exactly(sum(1 for part in paragraphs if part.strip()), wanted, "paragraph")
    if not passed:
        return False, reason
    words = paragraphs[nth - 1].split()
    if not words:
        return False, f"paragraph {nth} is empty"
    opening = words[0].lstrip("'").lstrip('"')
    end = next((at for at, char in enumerate(opening) if char in _WORD_ENDS), len(opening))
    opening = opening[:end].lower()
    return opening == first_word.lower(), f'paragraph {nth} opens with "{opening}", wanted "{first_word}"'
