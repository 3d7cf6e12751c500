"""Sums, means and whitening over a mask."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.algo.masked import (
    check_denominator,
    keep,
    masked_mean,
    masked_sum,
    micro_batch_denominator,
    whiten,
)

INF, NAN = math.inf, math.nan
VALUES = torch.tensor([1.0, NAN, 3.0, INF, 5.0, -INF], dtype=torch.float64)
MASK = torch.tensor([True, False, True, False, True, False])


def test_sum_and_mean_by_hand() -> None:
    """Kept are 1, 3, 5: their sum is 9, and over a step of 18 tokens 9 / 18 = 0.5."""
    assert masked_sum(VALUES, MASK).item() == 9.0
    assert masked_mean(VALUES, MASK, denominator=18).item() == 0.5


def test_nothing_behind_the_mask_reaches_value_or_gradient() -> None:
    """Closes T17: inf and nan behind the mask leave the value finite and the gradient exactly zero there."""
    values = VALUES.clone().requires_grad_()
    masked_mean(values, MASK, denominator=3).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1 / 3, 0, 1 / 3, 0, 1 / 3, 0]
    assert torch.isfinite(whiten(VALUES, MASK)).all()


def test_nothing_kept_adds_zero() -> None:
    """Closes T18: a fully masked row is worth 0, with a zero gradient."""
    values = torch.full((4,), NAN, requires_grad=True)
    total = masked_mean(values, torch.zeros(4, dtype=torch.bool), denominator=7)
    total.backward()
    assert total.item() == 0.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.0] * 4


@pytest.mark.parametrize("denominator", [0.0, -1.0, NAN, INF])
def test_a_denominator_must_be_a_count(denominator: float) -> None:
    with pytest.raises(ValueError, match="whole step's count"):
        check_denominator(denominator)
    with pytest.raises(ValueError, match="whole step's count"):
        masked_mean(VALUES, MASK, denominator=denominator)


def test_masks_are_never_broadcast_or_counted() -> None:
    """A (2, 1) mask on (2, 3) values would silently keep whole rows, an integer mask would index."""
    with pytest.raises(ValueError, match="differ"):
        keep(torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="boolean"):
        keep(torch.ones(3), torch.tensor([1, 0, 1]))


def test_micro_batch_denominator_is_a_mean_of_means() -> None:
    """Values 6 | 1, 2, 3: the means are 6 and 2, their mean is 4; the mean of all four would be 3."""
    parts = [torch.tensor([6.0, NAN]), torch.tensor([1.0, 2.0, 3.0])]
    masks = [torch.tensor([True, False]), torch.tensor([True, True, True])]
    denominators = [micro_batch_denominator(m, num_micro_batches=2) for m in masks]
    assert denominators == [2.0, 6.0]
    total = sum(masked_sum(p, m).item() / d for p, m, d in zip(parts, masks, denominators, strict=True))
    assert total == pytest.approx(4.0)


def test_micro_batch_without_targets_still_counts_as_one() -> None:
    """Closes T18: the denominator is 3 * max(1, 0) = 3, never 0."""
    assert micro_batch_denominator(torch.zeros(5, dtype=torch.bool), num_micro_batches=3) == 3.0
    with pytest.raises(ValueError, match="at least 1"):
        micro_batch_denominator(MASK, num_micro_batches=0)


@pytest.mark.parametrize(
    ("ddof", "shift_mean", "expected"),
    [
        (1, True, [-1.0, 0.0, 1.0]),
        (0, True, [-math.sqrt(1.5), 0.0, math.sqrt(1.5)]),
        (1, False, [2.0, 3.0, 4.0]),
    ],
)
def test_whiten_by_hand(ddof: int, shift_mean: bool, expected: list[float]) -> None:
    """1, 3, 5: mean 3, squares add to 8; var 8/2 = 4 (ddof 1) or 8/3 (ddof 0; 2 / sqrt(8/3) = sqrt 1.5)."""
    white = whiten(VALUES, MASK, shift_mean=shift_mean, ddof=ddof)
    assert white[MASK].tolist() == pytest.approx(expected, abs=1e-7)
    assert white[~MASK].tolist() == [0.0, 0.0, 0.0]


def test_whiten_adds_eps_to_the_variance() -> None:
    """-1, 1: var 2 (ddof 1); with eps 7 the scale is 1 / sqrt(2 + 7) = 1/3."""
    white = whiten(torch.tensor([-1.0, 1.0]), torch.ones(2, dtype=torch.bool), eps=7.0)
    assert white.tolist() == pytest.approx([-1 / 3, 1 / 3])


def test_one_value_cannot_be_whitened() -> None:
    with pytest.raises(ValueError, match="no variance"):
        whiten(torch.ones(3), torch.tensor([False, True, False]))
