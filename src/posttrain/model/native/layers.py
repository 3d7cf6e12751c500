"""All layers of a decoder for the newest tokens of many samples, in one call, on tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.model.native.build import KINDS, call
from posttrain.model.native.newest import Lines
from posttrain.model.native.product import stretch_of


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: fused projections as `product.laid`, and float32 norms, None where the family has none."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    """`product.in_turns`, then laid."""
    down: Tensor
    norms: tuple[Tensor | None, ...]
    """Entering and leaving attention, entering and leaving the MLP, of queries, of keys."""

    @property
    def pointers(self) -> list[int]:
        """As layers.cpp's `Layer`."""
        matrices = (p for weight in (self.qkv, self.out, self.gate_up, self.down) for p in _weight(weight))
        return [*matrices, *(0 if norm is None else norm.data_ptr() for norm in self.norms)]


class Layers:
    """A decoder. `embedding` is (V, H), `norm` (H,) float32, `head` (V, H), laid; all matrices of one type."""

    def __init__(
        self,
        layers: Sequence[Layer],
        head: Tensor,
        norm: Tensor,
        embedding: Tensor,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
    ) -> None:
        self._kept = layers, head, norm, embedding  # their memory is read
        self._vocab, self._eps, self._kind = len(head), eps, KINDS[embedding.dtype]
        hidden, inner = embedding.shape[1], layers[0].down.shape[1]
        sizes = len(layers), hidden, heads, kv_heads, head_dim, inner, self._vocab
        tables = [layer.pointers for layer in layers], _weight(head), sizes
        self._layers, self._head, self._sizes = (np.array(table, np.int64) for table in tables)
        self._model = (
            *(self._layers.ctypes.data, self._head.ctypes.data),
            *(norm.data_ptr(), embedding.data_ptr(), self._sizes.ctypes.data),
        )

    def run(
        self, ids: Tensor, angles: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, lines: Lines
    ) -> Tensor:
        """(A, V) logits after the tokens `ids` (A,) int64, to the bit those of the kernels one by one.

        angles are cos and sin (A, 1, D/2) of their places; keys and values (layers, slots, kv_heads, capacity, D) are
        the blocked cache of the embedding's type that `lines` tell of, which the tokens' own join.
        """
        ids, cos, sin = (x.contiguous() for x in (ids, *angles))
        out = torch.empty(len(ids), self._vocab, dtype=keys.dtype)
        call(
            "run_layers",
            self._kind,
            *self._model,
            *(x.data_ptr() for x in (ids, cos, sin, keys, values)),
            *lines.arguments,
            *(lines.longest, keys.shape[3], keys[0].numel()),
            *(out.data_ptr(), self._eps),
        )
        return out


def _weight(laid: Tensor) -> list[int]:
    """As layers.cpp's `Weight`."""
    stretch = stretch_of(laid.dtype, *laid.shape)
    assert stretch is not None
    return [laid.data_ptr(), stretch]
