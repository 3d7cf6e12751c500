"""Mixing sources: how many rows of each, which ones, and a record of it."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from posttrain.errors import DataError, RecipeError
from posttrain.records import Conversation, Preference, Problem

Item = TypeVar("Item", Conversation, Preference, Problem)


@dataclass(frozen=True, slots=True)
class Part(Generic[Item]):
    """One source of a mixture, read and parsed, and how much of it is wanted."""

    name: str
    items: Sequence[Item]
    sha256: str
    """Of the source's content; with the seed it decides which rows are drawn."""
    amount: int | float = 1.0
    """An int counts rows, a float is a fraction of them; either may ask for more than there are."""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """What one source gave to a mixture."""

    name: str
    sha256: str
    licence: str
    amount: int | float
    rows_read: int
    rows_used: int


@dataclass(frozen=True, slots=True)
class MixtureRecord:
    """Everything that decided a mixture, in the order of its rows."""

    seed: int
    parts: tuple[PartRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """The record as plain values, for JSON. `amount` keeps its type: 1 is a row, 1.0 is all of them."""
        return dataclasses.asdict(self)


def num_wanted(amount: int | float, num_rows: int) -> int:
    """Rows that `amount` asks of a source with `num_rows`: an int is itself, a float is multiplied.

    The product is rounded down, as the reference does, after removing float error (0.29 of 100 is 29).
    Raises RecipeError for an amount that is not a positive finite number.
    """
    if (
        isinstance(amount, bool)
        or not isinstance(amount, int | float)
        or not math.isfinite(amount)
        or amount <= 0
    ):
        raise RecipeError(
            f"amount {amount!r} must be a positive count (5000) or fraction (0.25, or 2.0 to repeat)"
        )
    return amount if isinstance(amount, int) else math.floor(round(amount * num_rows, 6))


def draw(num_rows: int, wanted: int, *, seed: Sequence[int]) -> list[int]:
    """`wanted` indices below `num_rows`: as many full copies as fit, then a sample without replacement.

    Copies come first and in order; the sample follows, in ascending order.
    """
    copies, rest = divmod(wanted, num_rows)
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    sample = (
        np.sort(generator.choice(num_rows, size=rest, replace=False)) if rest else np.array([], dtype=int)
    )
    return list(range(num_rows)) * copies + [int(i) for i in sample]


def mix(parts: Sequence[Part[Item]], *, seed: int) -> tuple[list[Item], MixtureRecord]:
    """The rows of every part, one part after the other, and the record of what was taken.

    Which rows of a part are drawn depends on the seed and the part alone, so adding, removing or moving
    other parts does not change it. Two parts that use one id for different rows get a part number before it.
    Raises DataError for an empty source or an amount that comes to no rows.
    """
    mixed: list[Item] = []
    records: list[PartRecord] = []
    seen: Counter[str] = Counter()
    owner: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        wanted = num_wanted(part.amount, len(part.items))
        if not part.items:
            raise DataError(f"{part.name} has no rows; give a source that has some")
        if wanted == 0:
            raise DataError(
                f"amount {part.amount} of {part.name} ({len(part.items)} rows) is no row; ask for more"
            )
        # The n-th part with the same content draws anew, so that two halves are not the same half.
        stream = [seed, int(hashlib.sha256(part.sha256.encode()).hexdigest()[:16], 16), seen[part.sha256]]
        seen[part.sha256] += 1
        for index in draw(len(part.items), wanted, seed=stream):
            item = part.items[index]
            if owner.setdefault(item.id, part.sha256) != part.sha256:
                item = dataclasses.replace(item, id=f"{number}/{item.id}")
            mixed.append(item)
        records.append(PartRecord(part.name, part.sha256, part.licence, part.amount, len(part.items), wanted))
    return mixed, MixtureRecord(seed, tuple(records))
