"""The `ifeval` verifier: does a reply follow every instruction of its ground truth, as it stands (strict)?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from posttrain.records import Score, Verdict
from posttrain.rewards.constraint import Constraint
from posttrain.rewards.ifeval_examples import ACCEPTS, REJECTS
from posttrain.rewards.instructions import find_instruction
from posttrain.rewards.tulu_constraints import find_tulu_constraint
from posttrain.rewards.verifier import verifier

_SHOWN = 3
"""Failed instructions that the reason tells about."""

Wanted = tuple[str, Constraint, Mapping[str, Any]]


@verifier("ifeval", accepts=ACCEPTS, rejects=REJECTS)
def ifeval(completion: str, ground_truth: Any) -> Score:
    """1.0 ("correct") when every instruction is followed, else 0.0 ("wrong").

    `ground_truth` is a dict or its JSON text, and is never changed: IFEval's `{"instruction_id_list": [...],
    "kwargs": [...]}` (or `"instruction_id"`), or Tülu's `{"func_name": ..., arguments, unused ones null}`.
    Anything else is a ValueError. `parts` holds 0 or 1 for each instruction id, `#2` added to a repeated one.

    A reply whose language cannot be detected, and that fails nothing else, is "unparseable" with 0.0.
    (The benchmark's rule lets it pass: see `instructions.check_instruction`.)
    """
    parts: dict[str, float] = {}
    failed: list[str] = []
    wrong = False
    for name, constraint, kwargs in read_ground_truth(ground_truth):
        outcome = constraint.judge(name, kwargs, completion)
        parts[_free_name(name, parts)] = float(outcome.passed)
        if not outcome.passed:
            failed.append(outcome.reason)
            wrong = wrong or not outcome.undetectable
    if not failed:
        return Score(1.0, "correct", f"followed all of {len(parts)} instructions", parts)
    verdict: Verdict = "wrong" if wrong else "unparseable"
    return Score(0.0, verdict, "; ".join(dict.fromkeys(failed[:_SHOWN])), parts)


def read_ground_truth(ground_truth: Any) -> list[Wanted]:
    """The constraints that a ground truth names, with their arguments; ValueError if it is malformed."""
    if isinstance(ground_truth, str):
        try:
            ground_truth = json.loads(ground_truth)
        except json.JSONDecodeError as error:
            raise ValueError(f"the ifeval ground truth is not JSON: {error}") from error
    if not isinstance(ground_truth, Mapping):
        raise ValueError(f"the ifeval ground truth must be an object, not {type(ground_truth).__name__}")
    if "func_name" in ground_truth:
        name = ground_truth["func_name"]
        kwargs = {key: value for key, value in ground_truth.items() if key != "func_name"}
        return [(name, find_tulu_constraint(name), kwargs)]
    return _read_instructions(ground_truth)


def _read_instructions(ground_truth: Mapping[str, Any]) -> list[Wanted]:
    ids = ground_truth.get("instruction_id_list", ground_truth.get("instruction_id"))
    kwargs = ground_truth.get("kwargs")
    if not isinstance(ids, list | tuple) or not ids or not isinstance(kwargs, list | tuple):
        raise ValueError(
            "the ifeval ground truth needs func_name, or the lists instruction_id_list (not empty) and kwargs"
        )
    if len(ids) != len(kwargs):
        raise ValueError(f"the ifeval ground truth has {len(ids)} instructions but {len(kwargs)} kwargs")
    wanted = []
    for name, arguments in zip(ids, kwargs, strict=True):
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ValueError(f"the kwargs of {name!r} must be an object, not {arguments!r}")
        wanted.append((name, find_instruction(name), arguments or {}))
    return wanted


def _free_name(name: str, taken: Mapping[str, float]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}#{number}", number + 1
    return free
