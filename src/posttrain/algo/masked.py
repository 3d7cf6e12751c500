"""Sums, means and whitening over the positions a mask keeps.

What lies behind the mask may be inf or nan: it is replaced before any arithmetic, so that it reaches
neither the value nor the gradient (0 * nan is nan; a product with the mask would not do).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, zero elsewhere; the gradient elsewhere is exactly zero.

    Shapes: both (...), equal. Raises ValueError when they differ (broadcasting a mask hides mistakes)
    or when the mask is not boolean. Source: definition.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask has type {mask.dtype}; it must be boolean")
    if values.shape != mask.shape:
        raise ValueError(
            f"values {tuple(values.shape)} and mask {tuple(mask.shape)} differ; give each value its own"
        )
    return torch.where(mask, values, 0.0)


def check_denominator(denominator: float) -> float:
    """`denominator`, if it is one; a ValueError if it is zero, negative or not finite.

    Source: definition.
    """
    if not (math.isfinite(denominator) and denominator > 0):
        raise ValueError(
            f"the denominator is {denominator}; pass the whole step's count, positive and finite"
        )
    return denominator


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` over the mask: a scalar in the units of `values`, 0 if nothing is kept.

    Shapes and errors: those of `keep`. Source: definition.
    """
    return keep(values, mask).sum()


def masked_mean(values: Tensor, mask: Tensor, *, denominator: float) -> Tensor:
    """Sum of `values` over the mask divided by `denominator`, which belongs to the whole step.

    The denominator is never counted here: with the step's count, the results of any split of the step
    add up to the mean over the step. Shapes and errors: those of `keep` and `check_denominator`.
    Source: definition.
    """
    return masked_sum(values, mask) / check_denominator(denominator)


def micro_batch_denominator(mask: Tensor, *, num_micro_batches: int) -> float:
    """The denominator that reproduces published runs which averaged per micro-batch.

        D = num_micro_batches * max(1, tokens kept in this micro-batch)

    Dividing each micro-batch's sum by its own D and adding up gives the mean of micro-batch means: each
    micro-batch weighs the same, so a token of a short one weighs more. `num_micro_batches` is the step's,
    over all ranks. A micro-batch without targets adds 0 and still counts as one.

    Shapes: mask (...). Unit: tokens. Errors: ValueError if `num_micro_batches` < 1.
    Source: open-instruct at 3f37c29, `masked_mean` under gradient accumulation, as in the Tülu 3.1 run.
    """
    if num_micro_batches < 1:
        raise ValueError(f"num_micro_batches is {num_micro_batches}; a step has at least 1")
    return float(num_micro_batches * max(1, int(mask.sum())))


def whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, ddof: int = 1, eps: float = 1e-8
) -> Tensor:
    """Scale the kept values to unit variance and, with `shift_mean`, to mean zero; zero elsewhere.

        out = (x - mean) / sqrt(var + eps)          (+ mean, unless shift_mean)
        var = sum (x - mean)^2 / (n - ddof)

    Published PPO whitens advantages with shift_mean=True, and rewards (when asked) with False, both with
    ddof 1 and eps 1e-8. n counts the values given: pass a whole step's, not a micro-batch's.

    Shapes: (...) each. Unit: none with `shift_mean`; else that of the mean plus a pure number.
    Errors: those of `keep`; ValueError if no more than `ddof` values are kept.
    Source: arXiv:1909.08593 code release (`whiten`); open-instruct at 3f37c29, `masked_whiten`.
    """
    kept = keep(values, mask)
    count = int(mask.sum())
    if count <= ddof:
        raise ValueError(
            f"whitening {count} value(s) with ddof {ddof} has no variance; give at least {ddof + 1}"
        )
    mean = kept.sum() / count
    centred = keep(kept - mean, mask)
    variance = centred.square().sum() / (count - ddof)
    white = centred * torch.rsqrt(variance + eps)
    return white if shift_mean else keep(white + mean, mask)
