"""The attention kernels over the segments of a tree, on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from posttrain.model.native.build import KINDS, LANES, call, library
from posttrain.model.tree import Tree

_CHUNK = 64
"""Query tokens of one task; attention.cpp has the same."""
_BACKWARD_CHUNK = 512
"""The same of the backward pass, whose every task keeps gradients for all of its keys."""
_LONGEST_HEAD = 256


def fits(dtype: torch.dtype, device: torch.device, *, head_dim: int) -> bool:
    """Whether the kernels take such heads: float32 or bfloat16 on a CPU."""
    return (
        dtype in KINDS
        and device.type == "cpu"
        and head_dim % (2 * LANES) == 0
        and head_dim <= _LONGEST_HEAD
        and library() is not None
    )


@dataclass(frozen=True)
class Spans:
    """A tree's segments as the kernel reads them; all arrays int64."""

    lines: np.ndarray
    """Packed tokens of each segment's keys, ancestors first, one segment after the other."""
    offsets: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray
    depths: np.ndarray
    tasks: np.ndarray
    """(tasks, 2): a segment and its first query token of at most 64."""

    @classmethod
    def of(cls, tree: Tree, *, trunk: int = 0) -> Self:
        """The first `trunk` packed tokens are keys only, and queries are counted from them."""
        segments = [s for s in tree.segments if s.start >= trunk]
        lines = [tree.ancestry(s) for s in segments]
        tasks = [(i, begin) for i, s in enumerate(segments) for begin in range(0, s.length, _CHUNK)]
        # the long ones first, so that no thread is left with one at the end
        tasks.sort(key=lambda task: -(segments[task[0]].depth + task[1]))
        return cls(
            lines=np.concatenate(lines),
            offsets=np.cumsum([0, *(len(line) for line in lines[:-1])]),
            firsts=np.array([s.start - trunk for s in segments]),
            lengths=np.array([s.length for s in segments]),
            depths=np.array([s.depth for s in segments]),
            tasks=np.array(tasks),
        )

    @cached_property
    def backward_tasks(self) -> tuple[np.ndarray, int]:
        """(tasks, 4) int64: a segment, its first query token, the one after its last, and where its keys start among
        those of all tasks, whose number is the second result.
        """
        bounds = [
            (i, begin, min(begin + _BACKWARD_CHUNK, int(length)))
            for i, length in enumerate(self.lengths)
            for begin in range(0, int(length), _BACKWARD_CHUNK)
        ]
        # the long ones first, so that no thread is left with one at the end
        bounds.sort(key=lambda task: -int(self.depths[task[0]] + task[2]) * (task[2] - task[1]))
        keys = np.array([self.depths[i] + end for i, _, end in bounds])
        starts = np.cumsum(keys) - keys
        return np.array([(*task, start) for task, start in zip(bounds, starts, strict=True)]), int(keys.sum())


def _by_rows(x: Tensor) -> Tensor:
    """`x` (N, heads, D) with whole rows, as they are or copied."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def attend_segments(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """(M, heads, D) attention of each query over its keys, and (M, heads) float32 normalisers (nats).

    query is (M, heads, D), key and value (T, kv_heads, D), all of one type, in the tree's packed order.
    """
    query, key, value = map(_by_rows, (query, key, value))
    rows, heads, size = query.shape
    kv_heads = key.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype)
    normalisers = torch.empty(rows, heads)
    # every key head of a task in turn
    tasks = np.empty((len(spans.tasks), kv_heads, 3), np.int64)
    tasks[:, :, 0], tasks[:, :, 2] = spans.tasks[:, :1], spans.tasks[:, 1:]
    tasks[:, :, 1] = np.arange(kv_heads)
    arrays = (spans.lines, spans.offsets, spans.firsts, spans.lengths, spans.depths, tasks)
    strided = [part for x in (query, key, value) for part in (x.data_ptr(), x.stride(0))]
    call(
        "attend_segments",
        KINDS[query.dtype],
        *strided,
        *(array.ctypes.data for array in arrays),
        *(len(spans.tasks) * kv_heads, heads, kv_heads, size),
        *(out.data_ptr(), normalisers.data_ptr()),
    )
    return out, normalisers


def attend_segments_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, normalisers: Tensor, grad: Tensor, spans: Spans
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query (as it is), key and value (float32) from `grad` (M, heads, D), that of `attend_segments`."""
    query, key, value = map(_by_rows, (query, key, value))
    grad = grad.contiguous()
    _, heads, size = query.shape
    kv_heads = key.shape[1]
    grad_query = torch.empty(query.shape, dtype=query.dtype)
    grad_key, grad_value = (torch.zeros(x.shape) for x in (key, value))
    tasks, lines = spans.backward_tasks
    parts = torch.empty(2 * size * kv_heads * lines)
    strided = [part for x in (query, key, value) for part in (x.data_ptr(), x.stride(0))]
    arrays = (spans.lines, spans.offsets, spans.firsts, spans.depths, tasks)
    call(
        "attend_segments_backward",
        KINDS[query.dtype],
        *strided,
        *(x.data_ptr() for x in (out, grad, normalisers)),
        *(array.ctypes.data for array in arrays),
        *(len(tasks), heads, kv_heads, size),
        *(x.data_ptr() for x in (grad_query, grad_key, grad_value, parts)),
    )
    return grad_query, grad_key, grad_value
