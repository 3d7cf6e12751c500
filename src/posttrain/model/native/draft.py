"""A decoder with 8-bit matrices that draws a few tokens in one call, over the engine's own cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.native.build import KINDS, LANES, call, lanes
from posttrain.model.native.newest import Trunk

_TOGETHER = 4
"""Rows that lie together; draft.cpp's ROWS."""
_ROWS_AT_ONCE = 8192
"""Rows of a matrix that are float32 at a time while it is rounded."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of int8 weights as draft.cpp reads them, each to be multiplied by its one of the float32 scales."""

    weights: Tensor
    """(rows / 4, columns / lanes, 4, lanes); rows are filled up to four with zeros."""
    scales: Tensor
    """(rows,)."""

    @classmethod
    def of(cls, weight: Tensor, *, gated: bool = False) -> Self:
        """`weight` (rows, columns) to the nearest of 255 evenly spaced values in each row.

        `gated`: the first half of the rows are gates of the second, and each two lie with theirs.
        """
        columns = weight.shape[1]
        if gated:
            weight = weight.view(2, -1, _TOGETHER // 2, columns).transpose(0, 1).reshape(-1, columns)
        filled = -len(weight) % _TOGETHER
        rounded, scales = zip(*(_rounded(rows) for rows in weight.split(_ROWS_AT_ONCE)), strict=True)
        whole = F.pad(torch.cat(rounded), (0, 0, 0, filled))
        laid = whole.view(-1, _TOGETHER, columns // lanes(), lanes()).transpose(1, 2).contiguous()
        return cls(laid, F.pad(torch.cat(scales), (0, filled)))

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.weights.shape[1] * self.weights.shape[3]

    @property
    def pointers(self) -> list[int]:
        """As draft.cpp's `Matrix`."""
        return [self.weights.data_ptr(), self.scales.data_ptr()]


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    wide = weight.float()
    scales = wide.abs().amax(1).clamp_(min=1e-30) / 127
    return (wide / scales[:, None]).round_().to(torch.int8), scales


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: fused projections, and float32 norms, None where the family has none."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    norms: tuple[Tensor | None, ...]
    """Entering and leaving attention, entering and leaving the MLP, of queries, of keys."""

    @property
    def pointers(self) -> list[int]:
        """As draft.cpp's `Layer`."""
        matrices = (p for matrix in (self.qkv, self.out, self.gate_up, self.down) for p in matrix.pointers)
        return [*matrices, *(0 if norm is None else norm.data_ptr() for norm in self.norms)]


class Copy:
    """The decoder. `embedding` is (V, H), float32 or bfloat16, `norm` (H,) float32, `head` (V, H)."""

    def __init__(
        self,
        layers: Sequence[Layer],
        head: Matrix,
        norm: Tensor,
        embedding: Tensor,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None:
        self._layers, self._head, self._norm, self._embedding = layers, head, norm, embedding
        self._eps = eps
        self._table = np.array([layer.pointers for layer in layers], np.int64)
        self._head_at = np.array(head.pointers, np.int64)
        (vocab, hidden), inner = embedding.shape, layers[0].down.columns
        self._sizes = np.array([len(layers), hidden, heads, kv_heads, head_dim, inner, vocab, 0, 0], np.int64)

    @staticmethod
    def fits(hidden: int, inner: int) -> bool:
        """Whether rows of these sizes are whole lanes."""
        return hidden % LANES == 0 and inner % LANES == 0

    def draw(
        self,
        newest: int,
        length: int,
        noise: np.ndarray,
        temperature: float,
        angles: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        trunk: Trunk | None,
    ) -> list[int]:
        """A token for each of `noise` (int64) after `newest`, number `length` of the sample in slot 0.

        angles are cos and sin (count, 1, D/2) from `newest` on; keys and values (layers, slots, kv_heads, capacity,
        D) are a blocked cache of the embedding's type, which holds what follows the trunk and is written to from
        token `length` on. Temperature 0 takes the likeliest.
        """
        count = len(noise)
        ids = np.empty(count, np.int64)
        noise = np.ascontiguousarray(noise, np.int64)
        self._sizes[-2:] = keys.shape[1], keys.shape[3]
        cos, sin = (angle.contiguous() for angle in angles)
        own = (
            self._table.ctypes.data,
            self._head_at.ctypes.data,
            self._norm.data_ptr(),
            self._embedding.data_ptr(),
        )
        given = (tensor.data_ptr() for tensor in (cos, sin, keys, values))
        start = (0, 0, 0) if trunk is None else (trunk.keys.data_ptr(), trunk.values.data_ptr(), trunk.depth)
        places = *own, self._sizes.ctypes.data, *given, *start, noise.ctypes.data
        counts = newest, length, count
        kind = KINDS[self._embedding.dtype]
        call("draft_tokens", kind, *places, *counts, ids.ctypes.data, temperature, self._eps)
        return [int(token) for token in ids]
