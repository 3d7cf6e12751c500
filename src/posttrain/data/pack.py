"""Rows laid end to end into batches of bounded size: no padding, positions restarted, nothing leaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

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
    lengths: Sequence[int], max_tokens: int, *, together: int = 1, rows: int | None = None
) -> list[list[int]]:
    """Row indices in groups of at most `max_tokens` tokens, rows of like length together.

    `together` rows in a row (a preference pair, say) are never parted. A unit longer than `max_tokens`
    stands alone. Attention pads a group to its longest row, so the groups follow the order of length.
    With `rows`, groups are of that many rows in the given order instead, for recipes whose loss depends on it.
    """
    if len(lengths) % together:
        raise ValueError(f"{len(lengths)} rows do not divide into units of {together}")
    if rows is not None:
        return [list(range(start, min(start + rows, len(lengths)))) for start in range(0, len(lengths), rows)]
    units = [range(start, start + together) for start in range(0, len(lengths), together)]
    units.sort(key=lambda unit: (sum(lengths[i] for i in unit), unit[0]))
    groups: list[list[int]] = []
    used = 0
    for unit in units:
        size = sum(lengths[i] for i in unit)
        if not groups or used + size > max_tokens:
            groups.append([])
            used = 0
        groups[-1] += unit
        used += size
    return groups


def pick(
    rows: Sequence[Row], indices: Iterable[int], columns: Mapping[str, Sequence[Sequence[float]]]
) -> Batch:
    """The batch of the rows at `indices` with their share of `columns`."""
    chosen = list(indices)
    return collate(
        [rows[i] for i in chosen], **{name: [values[i] for i in chosen] for name, values in columns.items()}
    )
