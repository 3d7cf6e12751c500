"""Attention of each sample's newest token over its cached keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """(A, heads * D) softmax attention of one query per sample and head.

    query is (A, heads, D), key and value (A, kv_heads, K, D), bias (A, 1, 1, K) additive or None. The query
    heads that share a key head are taken together as that many queries of it, so no key is repeated.
    """
    rows, heads, size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    filled = -(-group // 4) * 4
    grouped = F.pad(query.reshape(rows, kv_heads, group, size), (0, 0, 0, filled - group))
    mask = None if bias is None else bias.expand(-1, 1, filled, -1)
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
    return out[:, :, :group].reshape(rows, heads * size)


def length_bias(lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor | None:
    """(A, 1, 1, longest): 0 at positions below each length (A,), -inf beyond; None when all are full."""
    if bool((lengths == longest).all()):
        return None
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    bias = torch.zeros(beyond.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(beyond, float("-inf"))[:, None, None, :]
