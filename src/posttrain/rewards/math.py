r"""The strict rule for competition mathematics (data: arXiv:2103.03874).

A verdict is reached in this order: the same spelling; the same structure with the same exact values; the same
values to sixty digits at sampled points; and, for a label outside our grammar, math-verify on scalars only.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from posttrain.records import Score
from posttrain.rewards.boxed import boxed_contents, has_box
from posttrain.rewards.math_answer import Answer, Opaque, read_answers
from posttrain.rewards.math_equal import same_answer
from posttrain.rewards.math_examples import ACCEPTS, REJECTS
from posttrain.rewards.math_extract import final_answer
from posttrain.rewards.math_latex import normal_latex, without_spaces
from posttrain.rewards.math_value import TooLarge
from posttrain.rewards.verifier import verifier

_LONGEST_ANSWER = 1000
_APPROXIMATELY = re.compile(r"^.*?\\approx(?![A-Za-z])", re.DOTALL)
_NOT_FOR_LIBRARY = re.compile(r"[,;=<>|]|\\(?:text|approx|le|ge|ne|in|cup|pm|\{|\})(?![A-Za-z])|\^\{[^}]*\^")


@verifier("math", accepts=ACCEPTS, rejects=REJECTS, heavy=True)
def math(completion: str, ground_truth: Any) -> Score:
    r"""1.0 when the reply's final answer equals `ground_truth`: LaTeX, plain text, a number, or a solution
    whose last `\boxed{}` holds it.

    Raises ValueError for an empty ground truth or one that is neither text nor number. The rules are in
    `docs/verifiers.md`. Values are bounded in size, but a check may still take long: run it in the pool.
    """
    label = _label(ground_truth)
    raw = final_answer(completion)
    if raw is None:
        return Score(0.0, "unparseable", "the reply names no final answer")
    if len(raw) > _LONGEST_ANSWER:
        return Score(0.0, "unparseable", f"the final answer is longer than {_LONGEST_ANSWER} characters")
    if raw.strip() == label:
        return Score(1.0, "correct", "the answer is spelled as the label")
    spelling = without_spaces(normal_latex(raw))
    if not spelling:
        return Score(0.0, "unparseable", "the final answer is empty")
    if spelling == without_spaces(normal_latex(label)):
        return Score(1.0, "correct", "the answer is spelled as the label")
    return _compare(label, raw)


def _label(ground_truth: Any) -> str:
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, str | int | float):
        raise ValueError(f"the label {ground_truth!r} is neither text nor number")
    label = str(ground_truth).strip()
    if has_box(label):
        label = (boxed_contents(label) or [""])[-1]
    if not label or len(label) > _LONGEST_ANSWER:
        raise ValueError(f"the label {str(ground_truth)[:60]!r} holds no answer")
    return label


@lru_cache(maxsize=65536)
def _label_answers(label: str) -> tuple[Answer, ...]:
    return tuple(read_answers(_APPROXIMATELY.sub("", normal_latex(label))))


def _compare(label: str, raw: str) -> Score:
    truths = _label_answers(label)
    givens = read_answers(raw)
    try:
        if any(same_answer(truth, given) for truth in truths for given in givens):
            return Score(1.0, "correct", "the answer equals the label")
    except TooLarge as fault:
        return Score(0.0, "unparseable", str(fault))
    if all(isinstance(truth, Opaque) for truth in truths) and _library_agrees(label, raw):
        return Score(1.0, "correct", "math-verify finds the answer equal to the label")
    if all(isinstance(given, Opaque) for given in givens):
        return Score(0.0, "unparseable", f"{raw[:60]!r} is no answer we can read")
    return Score(0.0, "wrong", f"{raw[:60]!r} does not equal the label")


def _library_agrees(label: str, raw: str) -> bool:
    """math-verify's opinion, asked only about single expressions: it misreads lists, equations and prose."""
    spellings = normal_latex(label), normal_latex(raw)
    if any(_NOT_FOR_LIBRARY.search(spelling) or "\\" not in spelling for spelling in spellings):
        return False
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we keep the time ourselves
    truth, given = (parse(f"${spelling}$", parsing_timeout=None) for spelling in spellings)
    return bool(truth and given and verify(truth, given, timeout_seconds=None))
