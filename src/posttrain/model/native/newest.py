"""The attention kernel of decoding, on tensors: newest tokens over a cache, and over starts that samples share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from posttrain.model.native.build import KINDS, at_once, call, lanes

_ROWS_TOGETHER = 8
"""Rows of one trunk that read it together: enough to read it seldom, few enough that threads share the work."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """The first tokens of one or more samples: keys and values, each (layers, kv_heads, depth, D), a whole number of
    blocks, as `laid_keys` and `laid_values`.
    """

    keys: Tensor
    values: Tensor

    @property
    def depth(self) -> int:
        """Tokens."""
        return self.keys.shape[2]


class Lines:
    """Rows of a step, each a token of some sample: where its keys lie, and how many, as the kernel reads it.

    Row a is token lengths[a] of a sample that starts with trunks[a] and goes on in slots[a]. A sample may have several
    rows, one token after the other.
    """

    def __init__(self, trunks: Sequence[Trunk | None], slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._trunks = tuple(trunks)  # their memory is read
        at = [(0, 0, 0) if t is None else (t.keys.data_ptr(), t.values.data_ptr(), t.depth) for t in trunks]
        table = np.array(at, np.int64)
        order = np.argsort(table[:, 0], kind="stable")
        tasks = np.array(_tasks(table[order, 0]), np.int64)
        self._arrays = (
            table[:, :2].copy(),
            table[:, 2].copy(),
            np.array(slots, np.int64),
            np.array(lengths, np.int64),
            order,
            tasks,
        )
        counts = len(tasks), int(tasks[:, 1].max()), len(lengths)
        self.arguments = *(array.ctypes.data for array in self._arrays), *counts
        """Pointers, then numbers of tasks, of rows in the largest, and of rows."""
        self.longest = max(lengths)
        """Tokens of the longest sample."""

    def __len__(self) -> int:
        """Rows."""
        return len(self._trunks)


def _tasks(trunks: np.ndarray) -> list[tuple[int, int]]:
    """The first row and the number of rows of each task; trunks are sorted addresses, 0 for none."""
    ends = np.flatnonzero((trunks[1:] != trunks[:-1]) | (trunks[1:] == 0)) + 1
    return [
        (first, min(_ROWS_TOGETHER, end - first))
        for start, end in pairwise([0, *ends.tolist(), len(trunks)])
        for first in range(start, end, _ROWS_TOGETHER)
    ]


def attend_newest(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    lines: Lines,
    *,
    layer: int,
    heads: int,
) -> Tensor:
    """(A', heads * D): rotates each newest token, puts its key and value into the cache and attends to all there.

    projected is (A', (heads + 2 kv_heads) * D): queries, keys, values; cos and sin (A', 1, D/2). keys and values
    are those of `layer`, (slots, kv_heads, capacity, D), as `laid_keys` and `laid_values`. Rows beyond those of
    `lines` are zero.
    """
    _, kv_heads, capacity, size = keys.shape
    make = torch.empty if len(projected) == len(lines) else torch.zeros
    out = make(len(projected), heads * size, dtype=projected.dtype)
    call(
        "attend_newest",
        KINDS[projected.dtype],
        *(x.data_ptr() for x in (projected, cos, sin, keys, values)),
        *lines.arguments,
        *(layer, lines.longest, capacity, heads, kv_heads, size),
        out.data_ptr(),
    )
    return out


def laid_keys(keys: Tensor) -> Tensor:
    """(..., n, D) keys, n a multiple of `lanes()`, as the cache has them: `in_blocks` of what is multiplied at once."""
    if at_once(keys.dtype) == 1:
        return in_blocks(keys)
    return in_blocks(keys.contiguous().view(torch.float32)).view(keys.dtype)


def laid_values(values: Tensor) -> Tensor:
    """(..., n, D) values, n even, as the cache has them: each two by turns where words are multiplied, (D, 2)."""
    if at_once(values.dtype) == 1:
        return values.contiguous()
    pairs = values.unflatten(-2, (-1, 2)).transpose(-1, -2)
    return pairs.reshape(values.shape).contiguous()


def in_blocks(keys: Tensor) -> Tensor:
    """(..., n, D) keys, n a multiple of `lanes()`, in blocks of (D, lanes): the same shape."""
    *rest, length, size = keys.shape
    blocks = keys.reshape(*rest, length // lanes(), lanes(), size).transpose(-1, -2)
    # kernels read memory, and a single square block would come out as a view that leaves it as it was
    return blocks.reshape(*rest, length, size).contiguous()


def from_blocks(blocks: Tensor) -> Tensor:
    """What `in_blocks` laid out."""
    *rest, length, size = blocks.shape
    keys = blocks.reshape(*rest, length // lanes(), size, lanes()).transpose(-1, -2)
    return keys.reshape(*rest, length, size)
