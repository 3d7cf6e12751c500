"""Attention of a few queries per sequence over cached keys, with the normaliser that merging needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log normaliser.

    query is (B, heads, Q, D), key and value (B, heads, K, D), bias (B, 1, 1, K) additive or None.
    Returns the output (B, heads, Q, D) and the float32 log-sum-exp of the scaled scores (B, heads, Q).
    """
    mask = None if bias is None else bias.expand(-1, 1, query.shape[2], -1)
    if query.device.type == "cpu":
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask
        )
        return out, normaliser
    return attend_plainly(query, key, value, bias)


def attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attend` by the formula, on any device."""
    scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
    if bias is not None:
        scores = scores + bias
    normaliser = scores.logsumexp(-1)
    weights = (scores - normaliser[..., None]).exp()
    return weights.to(value.dtype) @ value, normaliser


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over the union of two key sets from the results over each (arXiv:2205.14135 section 3.1).

    Each pair is an output (..., D) and a normaliser (...); the result has the outputs' shape and dtype.
    """
    share = torch.sigmoid(first[1] - second[1])[..., None]
    return torch.lerp(second[0].float(), first[0].float(), share).to(first[0].dtype)


def length_bias(lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor | None:
    """(B, 1, 1, longest): 0 at positions below each length (B,), -inf beyond; None when all are full."""
    if bool((lengths == longest).all()):
        return None
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    bias = torch.zeros(beyond.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(beyond, float("-inf"))[:, None, None, :]
