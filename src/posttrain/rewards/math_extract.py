r"""Where the final answer of a reply stands.

1. The last balanced `\boxed{...}` (`\fbox{...}`, `\boxed 7`). An empty or unclosed box is no answer, and
   nothing else is looked at.
2. After the last "final answer is", "answer is", "answer:" or `####`: the `$...$` there, else the words up
   to the end of the sentence.
3. The last `$...$`, `\(...\)` or `\[...\]` of the last line.
4. The whole reply, when it is one line of at most 80 characters.
"""

from __future__ import annotations

import re

from posttrain.rewards.boxed import boxed_contents, has_box

_MARKER = re.compile(
    r"(?:answer(?:(?:\s+[a-z]+){0,8}?\s+(?:is|are)\b|[\s*]*:)(?:\s*[:=*]+)*|####)\s*", re.IGNORECASE
)
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_I_HOPE = re.compile(r"\.? ?I hope it is correct", re.IGNORECASE)
_WINDOW_CHARACTERS = 20_000
_LONGEST_REPLY = 80
_LONGEST_SEGMENT = 1000


def final_answer(completion: str) -> str | None:
    """The raw text of the final answer; None when the reply names none."""
    if has_box(completion):
        contents = boxed_contents(completion)
        return (contents[-1] or None) if contents else None
    text = completion[-_WINDOW_CHARACTERS:].strip()
    lower = text.lower()
    if len(lower) != len(text):  # İ and its like change the positions
        lower = text
    start = max(lower.rfind("answer"), lower.rfind("####"))
    while start >= 0:
        if marker := _MARKER.match(text, start):
            return _segment_answer(text[marker.end() : marker.end() + _LONGEST_SEGMENT])
        start = max(lower.rfind("answer", 0, start), lower.rfind("####", 0, start))
    last_line = text.rsplit("\n", 1)[-1]
    if last_line.count("$") % 2 == 0 and (maths := list(_MATHS.finditer(last_line[-_LONGEST_SEGMENT:]))):
        return _inside(maths[-1])
    if text and "\n" not in text and len(text) <= _LONGEST_REPLY:
        return text
    return None


def _segment_answer(segment: str) -> str | None:
    segment = _I_HOPE.split(segment, maxsplit=1)[0].strip().replace("**", "")
    maths = _MATHS.match(segment)
    if maths:
        end = _SENTENCE_END.search(segment, maths.end())
        rest = segment[maths.end() : end.start() if end else None]
        # "$5$ or $7$" is two answers, "$5$ meters" is one
        return segment[: maths.end()] + rest if "$" in rest else _inside(maths)
    end = _SENTENCE_END.search(segment)
    return (segment[: end.start()] if end else segment).strip() or None


def _inside(maths: re.Match[str]) -> str | None:
    return next((group.strip() for group in maths.groups() if group), None) or None
