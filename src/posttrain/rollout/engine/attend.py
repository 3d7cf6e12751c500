"""Attention of each sample's newest token over its cached keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.attention import round_up
from posttrain.model.decoder import Shape
from posttrain.model.native.newest import Lines, attend_newest
from posttrain.model.ops import rotary
from posttrain.rollout.engine.cache import Cache


class Newest:
    """One step of decoding: puts each sample's newest key and value into `cache` and attends to all of its keys.

    `lengths` (A,) counts each sample's tokens, the newest included, and `longest` is at least the largest of
    them; sample a lies in slot a. A blocked cache goes by `lines` instead. cos and sin are the (A', 1, D/2) angles
    of A' >= A rows, of which A count.
    """

    def __init__(
        self,
        cache: Cache,
        shape: Shape,
        lengths: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        longest: int,
        lines: Lines | None = None,
    ) -> None:
        self._cache, self._shape, self._lengths, self._lines = cache, shape, lengths, lines
        self._cos, self._sin = cos, sin
        if lines is None:
            self._longest = min(round_up(longest), cache.length)
            self._bias = length_bias(lengths, self._longest, cache.dtype)
            heads = torch.arange(len(lengths) * shape.num_kv_heads, device=lengths.device) * cache.length
            self._places = heads + (lengths - 1).repeat_interleave(shape.num_kv_heads)

    def attend(self, layer: int, projected: Tensor) -> Tensor:
        """(A', heads * D) from the layer's (A', (heads + 2 kv_heads) * D) queries, keys and values."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._lines is not None:
            at = self._cos, self._sin, keys, values, self._lines
            return attend_newest(projected, *at, layer=layer, heads=self._shape.num_heads)
        rows, longest = len(self._lengths), self._longest
        query, key, value = rotated(projected[:rows], self._shape, self._cos[:rows], self._sin[:rows])
        keys.flatten(0, 2).index_copy_(0, self._places, key.flatten(0, 1))
        values.flatten(0, 2).index_copy_(0, self._places, value.flatten(0, 1))
        out = attend(query, keys[:rows, :, :longest], values[:rows, :, :longest], self._bias)
        return out if rows == len(projected) else F.pad(out, (0, 0, 0, len(projected) - rows))


def rotated(projected: Tensor, shape: Shape, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A, heads, D) queries and (A, kv_heads, D) keys, both rotated, and values."""
    parts = projected.view(len(projected), -1, shape.head_dim)
    turned = rotary(parts[:, : shape.num_heads + shape.num_kv_heads], cos, sin)
    value = parts[:, shape.num_heads + shape.num_kv_heads :]
    return turned[:, : shape.num_heads], turned[:, shape.num_heads :], value


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """(A, heads * D) softmax attention of one query per sample and head.

    query is (A, heads, D), key and value (A, kv_heads, K, D), bias (A, 1, 1, K) additive. The query
    heads that share a key head are taken together as that many queries of it, so no key is repeated.
    """
    rows, heads, size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    filled = -(-group // 4) * 4
    grouped = F.pad(query.reshape(rows, kv_heads, group, size), (0, 0, 0, filled - group))
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=bias.expand(-1, 1, filled, -1))
    return out[:, :, :group].reshape(rows, heads * size)


def length_bias(lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """(A, 1, 1, longest): 0 at positions below each length (A,), -inf beyond."""
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    bias = torch.zeros(beyond.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(beyond, float("-inf"))[:, None, None, :]
