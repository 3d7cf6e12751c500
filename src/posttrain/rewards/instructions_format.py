"""IFEval instructions about the marks in a reply: bullets, highlights, titles, sections, JSON.

Source of every rule: `instruction_following_eval/instructions.py` of google-research (arXiv:2311.07911).
Where its expression needs quadratic time on a hostile reply, an equal scan stands here.
"""

from __future__ import annotations

import json
import re

from posttrain.rewards.constraint import Result, at_least, exactly
from posttrain.rewards.instructions_keywords import keyword_pattern

CANNED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_INK = re.compile(r"\S")
_SINGLE = re.compile(r"\*[^\n\*]*\*")
_DOUBLE = re.compile(r"\*\*[^\n\*]*\*\*")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def number_bullet_lists(reply: str, wanted: int) -> Result:
    r"""Exactly `wanted` matches of `^\s*\*[^\*].*$` and `^\s*-.*$`; so `---` is one, `**bold**` none."""
    return exactly(count_bullets(reply, "*") + count_bullets(reply, "-"), wanted, "bullet")


def count_bullets(reply: str, mark: str) -> int:
    r"""Matches of `^\s*\*[^\*].*$` (mark "*") or `^\s*-.*$` (mark "-"), multi-line, in linear time."""
    count = start = 0
    while ink := _INK.search(reply, start):
        end = ink.start()
        if reply[end] == mark == "-":
            count += 1
        elif reply[end] == mark and reply[end + 1 : end + 2] not in ("", "*"):
            count += 1
            end += 2  # the character after the star belongs to the match, even a line break
        newline = reply.find("\n", end)
        if newline < 0:
            break
        start = newline + 1
    return count


def number_highlighted_sections(reply: str, wanted: int) -> Result:
    """At least `wanted` of `*x*` and `**x**` on one line with something inside; one bold text counts once."""
    found = sum(1 for part in _SINGLE.findall(reply) if part.strip("*").strip())
    found += sum(1 for part in _DOUBLE.findall(reply) if part[2:-2].strip())
    return at_least(found, wanted, "highlight")


def title(reply: str) -> Result:
    r"""Some match of `<<[^\n]+>>` with more than white space inside the brackets."""
    for line in reply.split("\n"):
        opening, closing = line.find("<<"), line.rfind(">>")
        if closing > opening >= 0:
            inner = line[opening : closing + 2].lstrip("<").rstrip(">").strip()
            if inner:
                return True, f"found the title <<{inner}>>"
    return False, "found no title in << >>"


def multiple_sections(reply: str, splitter: str, wanted: int) -> Result:
    """At least `wanted` numbered marks such as `Section 1`, wherever they stand; case counts."""
    pattern = keyword_pattern(splitter.strip()) + r"\s?\d+"
    return at_least(sum(1 for _ in re.finditer(pattern, reply)), wanted, "section")


def json_format(reply: str) -> Result:
    """The reply, less a code fence around it, is JSON (bare strings and numbers too)."""
    try:
        json.loads(unfenced(reply))
    except ValueError as error:
        return False, f"not JSON: {error}"
    except RecursionError:
        return False, "not JSON: nested too deeply"
    return True, "found JSON"


def unfenced(reply: str) -> str:
    """The reply without the marks of a code fence at its start and end."""
    body = reply.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    return body.removesuffix("```").strip()


def number_placeholders(reply: str, wanted: int) -> Result:
    r"""At least `wanted` matches of `\[.*?\]`; empty brackets count."""
    return at_least(len(bracketed(reply)), wanted, "placeholder")


def bracketed(reply: str) -> list[str]:
    r"""The insides of the matches of `\[.*?\]`, in linear time."""
    found = []
    for line in reply.split("\n"):
        start = 0
        while (opening := line.find("[", start)) >= 0 and (closing := line.find("]", opening)) >= 0:
            found.append(line[opening + 1 : closing])
            start = closing + 1
    return found


def postscript(reply: str, marker: str) -> Result:
    """The marker is somewhere in the reply, case ignored; spaces may follow the dots of P.S. and P.P.S."""
    marker = marker.strip()
    pattern = _POSTSCRIPTS.get(marker) or keyword_pattern(marker.lower())
    found = re.search(pattern, reply.lower()) is not None
    return found, f'{"found" if found else "did not find"} the postscript "{marker}"'


def constrained_response(reply: str) -> Result:
    """One of the three published answers is in the reply, letter for letter."""
    found = [answer for answer in CANNED_RESPONSES if answer in reply]
    return bool(found), f'found "{found[0]}"' if found else f"found none of {', '.join(CANNED_RESPONSES)}"
