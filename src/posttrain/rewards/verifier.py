"""What a verifier is, and the table of those there are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import RecipeError
from posttrain.records import Score

Check = Callable[[str, Any], Score]
Example = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class Verifier:
    """A named pure function `(completion, ground_truth) -> Score` with the examples it must decide."""

    name: str
    check: Check
    accepts: tuple[Example, ...]
    rejects: tuple[Example, ...]
    heavy: bool = False
    """True when a hostile completion can cost seconds: then it runs in the process pool."""


VERIFIERS: dict[str, Verifier] = {}


def verifier(
    name: str, *, accepts: Sequence[Example], rejects: Sequence[Example], heavy: bool = False
) -> Callable[[Check], Check]:
    """Register `check` under `name`. Its examples are its contract: one test runs them all."""

    def register(check: Check) -> Check:
        if name in VERIFIERS:
            raise ValueError(f"verifier {name!r} is already registered")
        VERIFIERS[name] = Verifier(name, check, tuple(accepts), tuple(rejects), heavy)
        return check

    return register


def find_verifier(name: str) -> Verifier:
    """The verifier called `name`; a RecipeError that names the nearest one if there is none."""
    import posttrain.rewards  # registers the built-in ones

    assert posttrain.rewards
    if name not in VERIFIERS:
        near = difflib.get_close_matches(name, VERIFIERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(VERIFIERS))}"
        raise RecipeError(f"there is no verifier {name!r}; {hint}")
    return VERIFIERS[name]
