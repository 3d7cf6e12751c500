"""The format verifier: the whole reply must match a pattern, or be a row of filled tags."""

from __future__ import annotations

import re
from typing import Any

from posttrain.records import Score
from posttrain.rewards.verifier import verifier

_TAG = re.compile(r"[A-Za-z][\w-]*")
_R1 = {"tags": ["think", "answer"]}
_YES = {"pattern": r"(?i)yes|no"}
_DATE = {"pattern": r"\d{4}-\d{2}-\d{2}"}
_BULLETS = {"pattern": r"(?:- .+\n?){3}"}

ACCEPTS: tuple[tuple[str, Any], ...] = (
    ("<think>2+2</think><answer>4</answer>", _R1),
    ("<think>2+2</think>\n\n<answer>4</answer>\n", _R1),
    ("  <think>\na\nb\n</think> <answer>4</answer>", _R1),
    ("<think>if x < 3 and y > 4</think><answer>4</answer>", _R1),
    ("<think><b>bold</b></think><answer>4</answer>", _R1),
    ("<think>thinking about tags</think><answer>0</answer>", _R1),
    ("<answer>4</answer>", {"tags": ["answer"]}),
    ("<a>1</a><b>2</b><c>3</c>", {"tags": ["a", "b", "c"]}),
    ("<a>1</a>\n<b>2</b>\n<c>3</c>", {"tags": ["a", "b", "c"]}),
    ("<final-answer>4</final-answer>", {"tags": ["final-answer"]}),
    ("yes", _YES),
    ("No", _YES),
    (" yes\n", _YES),
    ("YES", _YES),
    ("2024-02-29", _DATE),
    ("1999-12-31\n", _DATE),
    ("- a\n- b\n- c", _BULLETS),
    ("- a\n- b\n- c\n", _BULLETS),
    ("42", {"pattern": r"-?\d+"}),
    ("-42", {"pattern": r"-?\d+"}),
    ("a\nb", {"pattern": r"(?s)a.b"}),
    ("{}", {"pattern": r"\{\}"}),
)
REJECTS: tuple[tuple[str, Any], ...] = (
    ("", _R1),
    ("4", _R1),
    ("<answer>4</answer>", _R1),
    ("<think>2+2</think>", _R1),
    ("<answer>4</answer><think>2+2</think>", _R1),
    ("<think>2+2</think><answer></answer>", _R1),
    ("<think> </think><answer>4</answer>", _R1),
    ("<think>2+2</think>so<answer>4</answer>", _R1),
    ("Sure! <think>2+2</think><answer>4</answer>", _R1),
    ("<think>2+2</think><answer>4</answer> Bye", _R1),
    ("<think>2+2</think><answer>4", _R1),
    ("<think>2+2<answer>4</answer></think>", _R1),
    ("<think>a</think><think>b</think><answer>4</answer>", _R1),
    ("<think>a</think><answer>4</answer><answer>5</answer>", _R1),
    ("<Think>a</Think><answer>4</answer>", _R1),
    ("", _YES),
    ("yes!", _YES),
    ("yes no", _YES),
    ("maybe", _YES),
    ("on 2024-02-29", _DATE),
    ("2024-2-29", _DATE),
    ("- a\n- b", _BULLETS),
    ("a\nb", {"pattern": r"a.b"}),
)


@verifier("format", accepts=ACCEPTS, rejects=REJECTS, heavy=True)
def format(completion: str, ground_truth: Any) -> Score:
    """1.0 when the whole reply, outer white space aside, has the form asked for.

    `ground_truth` is {"pattern": regular expression}, matched from end to end, or {"tags": [names]}: each
    tag once, in order, filled, nothing but white space between. Raises ValueError for anything else.
    A pattern can take for ever, so this runs in the process pool.
    """
    if not isinstance(ground_truth, dict) or len(ground_truth) != 1:
        raise ValueError(
            f"a format ground truth is {{'pattern': ...}} or {{'tags': [...]}}, not {ground_truth!r}"
        )
    text = completion.strip()
    if "pattern" in ground_truth:
        fits = _compiled(ground_truth["pattern"]).fullmatch(text) is not None
        return _score(fits, "the reply does not match the pattern")
    if "tags" in ground_truth:
        fault = _tag_fault(text, _tag_names(ground_truth["tags"]))
        return _score(fault is None, fault or "")
    raise ValueError(f"a format ground truth has pattern or tags, not {sorted(ground_truth)}")


def _score(fits: bool, fault: str) -> Score:
    return Score(1.0, "correct", "the form is as asked") if fits else Score(0.0, "wrong", fault)


def _compiled(pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise ValueError(f"pattern is a regular expression, not {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as fault:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {fault}") from fault


def _tag_names(tags: Any) -> list[str]:
    if not isinstance(tags, list | tuple) or not tags or len(set(map(str, tags))) != len(tags):
        raise ValueError(f"tags is a list of different names, not {tags!r}")
    for tag in tags:
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            raise ValueError(f"{tag!r} cannot be the name of a tag")
    return list(tags)


def _tag_fault(text: str, tags: list[str]) -> str | None:
    """What is wrong with the row of tags; None when nothing is."""
    for tag in tags:
        for mark in (f"<{tag}>", f"</{tag}>"):
            if (count := text.count(mark)) != 1:
                return f"{mark} occurs {count} times"
    rest = text
    for tag in tags:
        if not rest.startswith(f"<{tag}>"):
            return f"<{tag}> is not where it belongs"
        content, _, rest = rest[len(tag) + 2 :].partition(f"</{tag}>")
        if not content.strip():
            return f"<{tag}> is empty"
        if any(f"<{other}>" in content for other in tags):
            return f"a tag opens inside <{tag}>"
        rest = rest.lstrip()
    return "text follows the last tag" if rest else None
