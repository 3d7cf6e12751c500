r"""The strict rule for word problems with one number as answer (data: arXiv:2110.14168).

The final number of the reply must equal the label exactly. It is looked for in this order, and the
first place that holds a number decides:

1. `\boxed{...}`; an empty box is unparseable.
2. `#### n`; a `####` that no number follows is a Markdown heading and is skipped.
3. "answer is ...", "answer: ..." and their like, up to the end of the sentence.
4. The last number of the reply, a closing remark in brackets left out.

Different numbers in places of the same kind are several answers, hence wrong; so is a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from posttrain.records import Score
from posttrain.rewards.boxed import boxed_contents, has_box
from posttrain.rewards.gsm8k_examples import ACCEPTS, REJECTS
from posttrain.rewards.numeral import (
    EXPRESSION,
    LIST,
    MALFORMED,
    NUMBER,
    RANGE,
    Number,
    join_between,
    number_value,
    plain_text,
)
from posttrain.rewards.verifier import verifier

_ANSWER = re.compile(
    r"answer(?:(?:\s+[a-z]+){0,8}?\s+(?:is|equals)\b|[\s*]*:)(?:\s*[:=*]+)*\s*", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_HEADED = re.compile(r"[\s*=:$\\]*[-+−–]?\s?[$£€¥₹]?\s?[\d.]")
_REMARK = re.compile(r"([\d%][^\d()\n]{0,40})\([^()]{0,300}\)[\s.!*]*$")
_LETTER = re.compile(r"[^\W\d_]")
_TAIL_CHARACTERS = 400
_WINDOW_CHARACTERS = 20_000
_SHORT_TAIL = 60
_MOST_MARKERS = 4


class _NoNumber(Exception):
    """The reply names no final number, for the reason given."""


class _SeveralAnswers(Exception):
    """The reply names more than one final number."""


@verifier("gsm8k", accepts=ACCEPTS, rejects=REJECTS)
def gsm8k(completion: str, ground_truth: Any) -> Score:
    """1.0 when the reply's final number equals `ground_truth`, a number or its text; exact, no tolerance.

    Units, currency signs and percent signs say nothing: `$18.00`, `18 eggs` and `18%` are 18.
    Raises ValueError when the label is not a number. The rules are in `docs/verifiers.md`.
    """
    truth = _label(ground_truth)
    before, mark, after = completion.rpartition("####")
    if mark and after.strip() == ground_truth and "####" not in before and not has_box(completion):
        return Score(1.0, "correct", "the final number equals the label")
    try:
        value = _final_value(completion)
    except _NoNumber as missing:
        return Score(0.0, "unparseable", str(missing))
    except _SeveralAnswers as several:
        return Score(0.0, "wrong", str(several))
    if value == truth:
        return Score(1.0, "correct", "the final number equals the label")
    return Score(0.0, "wrong", f"the final number is {_shown(value)}, not {_shown(truth)}")


def _shown(value: Number) -> str:
    return str(value)[:40]


def _label(ground_truth: Any) -> Number:
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, str | int | float | Fraction):
        raise ValueError(f"the label {ground_truth!r} is not a number")
    return _label_value(str(ground_truth))


@lru_cache(maxsize=65536)
def _label_value(label: str) -> Number:
    text = plain_text(label).strip()
    found = NUMBER.fullmatch(text.rstrip("."))
    value = number_value(found) if found else None
    if value is None:
        raise ValueError(f"the label {label!r} is not a number")
    return value


def _final_value(completion: str) -> Number:
    if has_box(completion):
        return _boxed_value(completion)
    for segments in (_headed(completion), _announced(completion)):
        values = {value for segment in segments if (value := _first_value(segment)) is not None}
        if len(values) > 1:
            raise _SeveralAnswers("the reply gives several different final answers")
        if values:
            return values.pop()
    return _last_value(completion)


def _boxed_value(completion: str) -> Number:
    values = set()
    for content in boxed_contents(completion)[-_MOST_MARKERS:]:
        text = plain_text(content[:_TAIL_CHARACTERS])
        value = _first_value(text) if len(content) <= _TAIL_CHARACTERS else None
        if value is None or "\\" in text or "^" in text or text.endswith("!"):
            raise _NoNumber(f"the box holds no plain number: {content[:40]!r}")
        values.add(value)
    if not values:
        raise _NoNumber("no box is closed")
    if len(values) > 1:
        raise _SeveralAnswers("the boxes hold different numbers")
    return values.pop()


def _headed(completion: str) -> Iterator[str]:
    """The lines after `####` that begin with a number."""
    if "####" not in completion:
        return
    for part in completion.split("####")[1:][-_MOST_MARKERS:]:
        line = part.split("\n", 1)[0]
        if _HEADED.match(line):
            yield plain_text(line[:_TAIL_CHARACTERS])


def _announced(completion: str) -> Iterator[str]:
    """What follows "the answer is", up to the end of the sentence."""
    completion = completion[-_WINDOW_CHARACTERS:]
    lower = completion.lower()
    if len(lower) != len(completion):  # İ and its like change the positions
        lower = completion
    start, found = len(lower), 0
    while found < _MOST_MARKERS and (start := lower.rfind("answer", 0, start)) >= 0:
        if marker := _ANSWER.match(lower, start):
            found += 1
            segment = completion[marker.end() : marker.end() + _TAIL_CHARACTERS]
            end = _SENTENCE_END.search(segment)
            yield plain_text(segment[: end.start()] if end else segment)


def _first_value(segment: str) -> Number | None:
    """The number that a marked segment names: the first one, or the first after its last `=`."""
    found = list(NUMBER.finditer(segment))
    if not found:
        return None
    equals = segment.rfind("=", 0, found[-1].start())
    first = next(i for i, number in enumerate(found) if number.start() > equals)
    values = {_value(found[first])}
    for left, right in zip(found[first:], found[first + 1 :], strict=False):
        join = join_between(segment, left, right)
        if join in (EXPRESSION, MALFORMED):
            raise _NoNumber(f"the answer is not one number: {segment.strip()[:40]!r}")
        if join == RANGE:
            values = {_value(right)}
        elif join == LIST:
            values.add(_value(right))
        else:
            break
    if len(values) > 1:
        raise _SeveralAnswers("the answer is a list of different numbers")
    return values.pop()


def _last_value(completion: str) -> Number:
    """The last number of the reply."""
    tail = completion[-_TAIL_CHARACTERS:]
    remarked = tail.rstrip(" .!*\n").endswith(")")
    tail = plain_text(tail)
    if remarked:
        tail = _REMARK.sub(r"\1", tail)
    found = list(NUMBER.finditer(tail, max(0, len(tail) - _SHORT_TAIL)))
    if len(found) < 3:  # the first may be cut in two, the join needs two
        found = list(NUMBER.finditer(tail))
    if not found:
        raise _NoNumber("the reply ends without a number")
    if len(found) > 1:
        _refuse_joined(tail, found[-2], found[-1])
    return _value(found[-1])


def _refuse_joined(tail: str, before: re.Match[str], last: re.Match[str]) -> None:
    """Raise when the last number is part of an expression, of a list or of something like `5:30`."""
    join = join_between(tail, before, last)
    if join in (EXPRESSION, MALFORMED):
        raise _NoNumber(f"the reply ends in no single number: {tail[before.start() :][:40]!r}")
    if join != LIST or _value(before) == _value(last):
        return
    # "in week 2, 18 eggs" is no list; "2, 18" and "2,18 eggs" are
    spaced = tail[before.end() : last.start()].endswith(" ")
    if not spaced or _LETTER.search(tail, last.end()) is None:
        raise _SeveralAnswers("the reply ends in a list of different numbers")


def _value(found: re.Match[str]) -> Number:
    value = number_value(found)
    if value is None:
        raise _NoNumber(f"not a number: {found[0][:40]!r}")
    return value
