"""Functions that misbehave, for the pool: it imports them by name in its workers."""

from __future__ import annotations

import os
import time
from typing import Any

from posttrain.records import Score


def double(number: int) -> int:
    return 2 * number


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def spin() -> None:
    """Never returns and never lets another Python thread or a signal handler see it: one regex match."""
    import re

    re.fullmatch(r"(a+)+b", "a" * 60)


def allocate(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def die() -> None:
    os.kill(os.getpid(), 9)


def process_id() -> int:
    return os.getpid()


def raise_fault() -> None:
    raise LookupError("on purpose")


def unpicklable() -> Any:
    return lambda: None


def third_throws(completion: str, ground_truth: Any) -> Score:
    """Right when the completion is the label; fails on every third row."""
    if int(completion) % 3 == 2:
        raise KeyError(completion)
    right = completion == ground_truth
    return Score(float(right), "correct" if right else "wrong", completion)
