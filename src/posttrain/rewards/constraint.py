"""A constraint on a reply: a check, and the arguments that the data must give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Result = tuple[bool, str]
"""Whether the reply passes, and in plain words what was seen and what was wanted."""

Reader = Callable[[str, Any], Any]
"""`(argument name, value in the data) -> value for the check`; a ValueError when it cannot be used."""

RELATIONS = ("less than", "at least")
QUANTIFIERS = ("at least", "at most", "around")


class Undetectable(Exception):
    """The language of a reply cannot be told: an outcome of its own, neither pass nor fail."""


class Outcome(NamedTuple):
    """What one constraint says of one reply. `undetectable` implies not `passed`."""

    passed: bool
    reason: str
    undetectable: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """`check(reply, *arguments) -> Result`, its arguments by their names in the data, in order."""

    check: Callable[..., Result]
    arguments: tuple[tuple[str, Reader], ...] = ()

    def read(self, name: str, kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments in order; nulls count as absent.

        A missing, surplus or unusable one is a ValueError: the reference draws a missing one at random.
        """
        given = {key: value for key, value in kwargs.items() if value is not None}
        wanted = [key for key, _ in self.arguments]
        if missing := [key for key in wanted if key not in given]:
            raise ValueError(f"{name} needs {', '.join(missing)}, which the ground truth does not give")
        if surplus := sorted(set(given) - set(wanted)):
            raise ValueError(f"{name} does not take {', '.join(surplus)}; its arguments are {wanted}")
        return [read(key, given[key]) for key, read in self.arguments]

    def judge(self, name: str, kwargs: Mapping[str, Any], reply: str) -> Outcome:
        """Run the check; an empty reply never passes. ValueError if the arguments are malformed."""
        values = self.read(name, kwargs)
        try:
            passed, reason = self.check(reply, *values)
        except Undetectable as cause:
            if reply.strip():
                return Outcome(False, str(cause), undetectable=True)
            passed, reason = False, ""
        return Outcome(passed, reason) if reply.strip() else Outcome(False, "the reply is empty")


def counted(count: int, noun: str) -> str:
    """`1 bullet`, `4 bullets`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def at_least(count: int, wanted: int, noun: str) -> Result:
    """Passes when `count` >= `wanted`."""
    return count >= wanted, f"found {counted(count, noun)}, wanted at least {wanted}"


def exactly(count: int, wanted: int, noun: str) -> Result:
    """Passes when `count` == `wanted`."""
    return count == wanted, f"found {counted(count, noun)}, wanted exactly {wanted}"


def related(count: int, relation: str, wanted: int, noun: str) -> Result:
    """Passes when `count` is "less than" (strictly) or "at least" `wanted`."""
    passed = count < wanted if relation == "less than" else count >= wanted
    return passed, f"found {counted(count, noun)}, wanted {relation} {wanted}"


def whole_number(name: str, value: Any) -> int:
    """An integer >= 0; 3.0 counts as 3, because Arrow turns integer columns with nulls into floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return value


def relation(name: str, value: Any) -> str:
    """ "less than" or "at least"."""
    if value not in RELATIONS:
        raise ValueError(f"{name} must be one of {RELATIONS}, not {value!r}")
    return str(value)


def quantifier(name: str, value: Any) -> str:
    """ "at least", "at most" or "around"."""
    if value not in QUANTIFIERS:
        raise ValueError(f"{name} must be one of {QUANTIFIERS}, not {value!r}")
    return str(value)


def text(name: str, value: Any) -> str:
    """A string that is not blank, as it stands."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not blank, not {value!r}")
    return value


def texts(name: str, value: Any) -> list[str]:
    """A list, not empty, of strings that are not blank."""
    if isinstance(value, str) or not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} must be a list of texts, not {value!r}")
    return [text(name, item) for item in value]


def letter(name: str, value: Any) -> str:
    """One character that is not white space; `#` and `!` are meant literally."""
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError(f"{name} must be one character, not {value!r}")
    return value.strip()
