"""Drawing one token per row: exact, by noise that depends on the row's seed and its place alone.

The tokens of a row race: token i, of probability p_i, arrives after E_i / p_i, where E_i is exponential, and the first
to arrive is drawn. That is the softmax exactly (the Gumbel-max trick, arXiv:1611.00712), and two distributions that
differ little draw the same token from the same noise nearly always, which one number and the inverse of the
cumulative distribution do not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from posttrain.model.native import elementwise
from posttrain.rollout.sampler import Sampling

_ROWS_AT_ONCE = {"cpu": 4, "cuda": 64}
"""Rows whose noise is made together: on a CPU as many as fit a core's cache."""
_WORD = 0xFFFFFFFF


def noise(seeds: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(A,) int64, all 64 bits random: number `indices[a]` of the stream `seeds[a]` (SplitMix64, Steele et al. 2014).

    seeds and indices are (A,) uint64. A counter-based stream, so a sample's draws do not depend on
    which rows it shares a batch with.
    """
    with np.errstate(over="ignore"):
        z = seeds + (indices + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).view(np.int64)


def draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(A,) token ids and (A,) float32 log-probabilities (nats) at the sampling temperature.

    logits is (A, V), noise (A,) int64 of random bits. Temperature 0 takes the most likely token and reports
    its log-probability at temperature 1. With top_p < 1 or top_k > 0 the log-probabilities are those of the
    renormalised set that was drawn from.
    """
    temperature = sampling.temperature
    if temperature > 0 and (sampling.top_p < 1.0 or sampling.top_k > 0):
        logits, temperature = _truncate(logits.float() / temperature, sampling), 1.0
    if elementwise.fits(logits, logits.dtype):
        return elementwise.draw(logits, noise, temperature)
    if temperature == 0:
        wide = logits.float()
        ids = wide.argmax(1)
        return ids, wide.gather(1, ids[:, None])[:, 0] - wide.logsumexp(1)
    at_once = _ROWS_AT_ONCE.get(logits.device.type, len(logits))
    rows = zip(logits.split(at_once), noise.split(at_once), strict=True)
    ids, logprobs = zip(*(_race(some, temperature, own) for some, own in rows), strict=True)
    return torch.cat(ids), torch.cat(logprobs)


def _race(logits: Tensor, temperature: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What `elementwise.draw` does, over whole tensors: see `sampling.h`."""
    wide = logits.float() / temperature
    mass = (wide - wide.amax(1, keepdim=True)).exp_()
    arrives = torch.log1p(-uniforms(noise, logits.shape[1])).neg_() / mass
    ids = arrives.argmin(1)
    return ids, (mass.gather(1, ids[:, None])[:, 0] / mass.sum(1)).log()


def uniforms(noise: Tensor, vocab: int) -> Tensor:
    """(A, V) float32 in (0, 1): each token's own number, by a mix of its id with its row's bits (A,) int64.

    32-bit arithmetic: two rounds of multiplying (the constants of prospector's lowbias32) with half of the bits
    before each. No product needs more than 63 bits.
    """
    low, high = (noise & _WORD)[:, None], (noise >> 32 & _WORD)[:, None]
    token = torch.arange(vocab, device=noise.device) * 0x9E3779B9
    x = (token + low).bitwise_and_(_WORD)
    x = x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD).bitwise_and_(_WORD)
    x = x.bitwise_xor_(x >> 15).bitwise_xor_(high).mul_(0x735A2D97).bitwise_and_(_WORD)
    x = x.bitwise_xor_(x >> 15) >> 1
    return x.float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)


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
