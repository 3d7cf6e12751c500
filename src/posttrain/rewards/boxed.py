r"""Finding `\boxed{...}` in a reply: braces balanced, escaped braces skipped, cost linear."""

from __future__ import annotations

import re

_OPENING = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\?[^\s$\\{}.,]+")
_MOST_TRIED = 8


def has_box(text: str) -> bool:
    r"""True when `text` opens a box, balanced or not."""
    return "\\" in text and ("\\boxed" in text or "\\fbox" in text or "\\framebox" in text)


def boxed_contents(text: str) -> list[str]:
    r"""The contents of the balanced boxes in `text`, in order; of many, only the last eight are read.

    `\boxed{a{b}` is unbalanced and is left out. `\boxed 7` holds `7`. An empty box gives "".
    """
    contents = []
    for opening in list(_OPENING.finditer(text))[-_MOST_TRIED:]:
        start = opening.end()
        if text.startswith("{", start):
            end = closing_brace(text, start)
            if end is not None:
                contents.append(text[start + 1 : end].strip())
        elif bare := _BARE.match(text, start):
            contents.append(bare[0])
    return contents


def closing_brace(text: str, start: int) -> int | None:
    """Index of the brace that closes the one at `start`; None when nothing does."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return brace.start()
    return None
