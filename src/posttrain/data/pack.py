"""Rows laid end to end into batches of bounded size: no padding, positions restarted, nothing leaks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from posttrain.model.tree import MIN_SHARED, shared_length
from posttrain.records import Batch, Row

if TYPE_CHECKING:
    from torch import Tensor


def collate(rows: Sequence[Row], **columns: Sequence[Sequence[float]] | Sequence[float]) -> Batch:
    """One batch of `rows` in order.

    A column named after a per-token field of `Batch` holds one sequence per row, as long as the row; one
    named `reference_sums` holds one number per row. Raises ValueError on a length that does not fit.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    lengths = tuple(len(row.ids) for row in rows)
    mask = torch.tensor([flag for row in rows for flag in row.mask], dtype=torch.bool)
    starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    mask[starts] = False  # nothing predicts a row's first token
    return Batch(
        ids=torch.tensor([token for row in rows for token in row.ids]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        mask=mask,
        lengths=lengths,
        row_ids=tuple(row.id for row in rows),
        **{name: _column(name, values, lengths) for name, values in columns.items()},
    )


def _column(
    name: str, values: Sequence[Sequence[float]] | Sequence[float], lengths: tuple[int, ...]
) -> Tensor:
    if len(values) != len(lengths):
        raise ValueError(f"{name} has {len(values)} rows, the batch {len(lengths)}")
    if name == "reference_sums":
        return torch.tensor(values, dtype=torch.float32)
    per_token = [torch.as_tensor(value, dtype=torch.float32) for value in values]
    if [len(value) for value in per_token] != list(lengths):
        raise ValueError(f"{name} must have one number for each token of each row")
    return torch.cat(per_token)


def micro_batches(
    sequences: Sequence[Row], max_tokens: int, *, together: int = 1, rows: int | None = None
) -> list[list[int]]:
    """Row indices in groups of at most `max_tokens` tokens to compute, rows that begin alike together.

    There are as few groups as that allows, as even as can be: the largest decides how much memory a step takes. A
    start that rows of a group share is computed once (`model/tree.py`) and but for its last few tokens counts once.
    `together` rows in a row (a preference pair, say) are never parted. A unit longer than `max_tokens` stands alone.
    With `rows`, groups are of that many rows in the given order instead, for recipes whose loss depends on it.
    """
    count = len(sequences)
    if count % together:
        raise ValueError(f"{count} rows do not divide into units of {together}")
    if rows is not None:
        return [list(range(start, min(start + rows, count))) for start in range(0, count, rows)]
    units = [range(start, start + together) for start in range(0, count, together)]
    units.sort(key=lambda unit: (sequences[unit[0]].ids, unit[0]))
    sizes = _sizes(sequences, units)
    fewest = len(_split(sizes, max_tokens))
    even = range(sum(after for _, after in sizes) // max(1, fewest), max_tokens)
    bound = even.start + bisect_left(even, True, key=lambda most: len(_split(sizes, most)) <= fewest)
    return [[i for unit in units[part] for i in unit] for part in _split(sizes, min(bound, max_tokens))]


def _sizes(sequences: Sequence[Row], units: Sequence[range]) -> list[tuple[int, int]]:
    """Tokens to compute of each unit: as the first of a group, and after the unit before it."""
    found = []
    before: np.ndarray | None = None
    for unit in units:
        first, *others = (np.asarray(sequences[i].ids) for i in unit)
        alone = len(first) + sum(len(other) - _shared(first, other) for other in others)
        found.append((alone, alone - (0 if before is None else _shared(before, first))))
        before = first
    return found


def _split(sizes: Sequence[tuple[int, int]], most: int) -> list[slice]:
    """Units in a row, as many as come to at most `most` tokens; a larger one alone."""
    starts: list[int] = []
    used = 0
    for place, (alone, after) in enumerate(sizes):
        if not starts or used + after > most:
            starts.append(place)
            used = alone
        else:
            used += after
    return [slice(start, end) for start, end in pairwise([*starts, len(sizes)])]


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens at the start of both that are surely computed once: a branch may lie that much before they part."""
    return max(0, shared_length(a, b) - (MIN_SHARED - 1))


def pick(
    rows: Sequence[Row], indices: Iterable[int], columns: Mapping[str, Sequence[Sequence[float]]]
) -> Batch:
    """The batch of the rows at `indices` with their share of `columns`."""
    chosen = list(indices)
    return collate(
        [rows[i] for i in chosen], **{name: [values[i] for i in chosen] for name, values in columns.items()}
    )
