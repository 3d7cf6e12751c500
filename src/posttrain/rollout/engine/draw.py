"""Drawing one token per row: exact, from one uniform number per row that depends on the row's seed alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posttrain.model.native import elementwise
from posttrain.rollout.sampler import Sampling

_BLOCK = 256
_ROWS_AT_ONCE = 16
"""Rows whose float32 probabilities fit a core's cache together."""


def uniforms(seeds: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(A,) float64 in [0, 1): number `indices[a]` of the stream `seeds[a]` (SplitMix64, Steele et al. 2014).

    seeds and indices are (A,) uint64. A counter-based stream, so a sample's draws do not depend on
    which rows it shares a batch with.
    """
    with np.errstate(over="ignore"):
        z = seeds + (indices + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(A,) token ids and (A,) float32 log-probabilities (nats) at the sampling temperature.

    logits is (A, V), uniform (A,) float32 in [0, 1). Temperature 0 takes the most likely token and reports
    its log-probability at temperature 1. With top_p < 1 or top_k > 0 the log-probabilities are those of the
    renormalised set that was drawn from.
    """
    is_whole = sampling.top_p == 1.0 and sampling.top_k == 0
    is_native = elementwise.fits(logits, logits.dtype)
    if sampling.temperature == 0:
        if is_native:
            return elementwise.draw(logits, uniform, 0.0)
        wide = logits.float()
        ids = wide.argmax(1)
        return ids, wide.gather(1, ids[:, None])[:, 0] - wide.logsumexp(1)
    if is_whole and is_native:
        return elementwise.draw(logits, uniform, sampling.temperature)
    if not is_whole:
        return _by_blocks(_truncate(logits.float() / sampling.temperature, sampling), 1.0, uniform)
    at_once = _ROWS_AT_ONCE if logits.device.type == "cpu" else max(1, len(logits))
    parts = [
        _by_blocks(rows, sampling.temperature, u)
        for rows, u in zip(logits.split(at_once), uniform.split(at_once), strict=True)
    ]
    return torch.cat([ids for ids, _ in parts]), torch.cat([logprobs for _, logprobs in parts])


def _by_blocks(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of the cumulative distribution, found in two steps: which block of tokens, then which token."""
    rows, vocab = logits.shape
    wide = torch.full((rows, -(-vocab // _BLOCK) * _BLOCK), float("-inf"), device=logits.device)
    wide[:, :vocab] = logits
    if temperature != 1.0:
        wide /= temperature
    peak = wide.amax(1, keepdim=True)
    mass = wide.sub_(peak).exp_()
    blocks = mass.view(rows, -1, _BLOCK)
    block_sums = blocks.sum(2)
    cumulative = block_sums.cumsum(1)
    total = cumulative[:, -1:]
    target = uniform[:, None].to(mass.dtype) * total
    # `right=True`: the first block whose cumulative mass exceeds the target, so one of mass zero is never taken
    # a uniform that was rounded to 1 gives a target past the end: the last block that has mass
    block = torch.minimum(torch.searchsorted(cumulative, target, right=True), _last_positive(block_sums))
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0]
    # rounding may leave it just below zero, where a block's first token would be taken though it has no mass
    within = (target - (cumulative.gather(1, block) - block_sums.gather(1, block))).clamp_(min=0)
    steps = inside.cumsum(1)
    offset = torch.searchsorted(steps, within, right=True)
    # rounding may carry the target past the block's last token of any mass
    offset = torch.minimum(offset, _last_positive(inside))
    ids = (block * _BLOCK + offset)[:, 0]
    return ids, (inside.gather(1, offset) / total).log()[:, 0]


def _last_positive(mass: Tensor) -> Tensor:
    """(A, 1) index of the last entry above zero in each row."""
    positions = torch.arange(mass.shape[1], device=mass.device)
    return torch.where(mass > 0, positions, 0).amax(1, keepdim=True)


def _truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits with everything outside the top-k and the nucleus (arXiv:1904.09751) set to -inf."""
    ordered, order = logits.sort(1, descending=True)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    if sampling.top_k > 0:
        drop[:, sampling.top_k :] = True
    if sampling.top_p < 1.0:
        probabilities = ordered.masked_fill(drop, float("-inf")).softmax(1)
        drop |= probabilities.cumsum(1) - probabilities >= sampling.top_p
        drop[:, 0] = False  # the likeliest token stays, however little is asked for
    return logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), float("-inf"))
