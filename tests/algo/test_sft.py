"""Token cross-entropy and its three published reductions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.algo.masked import micro_batch_denominator
from posttrain.algo.sft import token_cross_entropy

LN2 = math.log(2)
LOGPROBS = torch.log(torch.tensor([0.0, 1 / 2, 1 / 4, 1 / 8, 1 / 2], dtype=torch.float64))
MASK = torch.tensor([False, True, True, True, False])
"""Targets have 1, 2 and 3 bits; the first position holds -inf and is not one."""


def step() -> tuple[list[Tensor], list[Tensor]]:
    """Five rows of unequal lengths with ragged masks, one of them fully masked, in double precision."""
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 11, 1, 6, 4]
    rows = [-torch.rand(n, generator=generator, dtype=torch.float64) * 9 for n in lengths]
    masks = [torch.rand(n, generator=generator) < 0.7 for n in lengths]
    masks[3][:] = False
    rows[3][:] = math.nan
    return rows, masks


def gradient(split: list[list[int]], reduction: str) -> tuple[float, float, Tensor]:
    """Loss, metric and gradient of the step of `step`, added up over the micro-batches of `split`."""
    rows, masks = step()
    leaves = [row.requires_grad_() for row in rows]
    num_tokens = float(sum(int(mask.sum()) for mask in masks))
    loss_sum = metric_sum = 0.0
    for part in split:
        logprobs = torch.cat([leaves[i] for i in part])
        mask = torch.cat([masks[i] for i in part])
        denominator = {
            "step_tokens": None,
            "sum": float(len(split)),
            "micro_batch_mean": micro_batch_denominator(mask, num_micro_batches=len(split)),
        }[reduction]
        loss, metrics = token_cross_entropy(logprobs, mask, num_tokens=num_tokens, denominator=denominator)
        loss.backward()
        loss_sum += loss.item()
        metric_sum += metrics["loss/nats_per_token"].item()
    return loss_sum, metric_sum, torch.cat([leaf.grad for leaf in leaves if leaf.grad is not None])


def test_by_hand() -> None:
    """1 + 2 + 3 = 6 bits = 6 ln 2 nats over 3 targets: 2 ln 2 each. The gradient is -1/3 at each target."""
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = token_cross_entropy(logprobs, MASK, num_tokens=3)
    loss.backward()
    assert loss.item() == pytest.approx(2 * LN2)
    assert metrics["loss/nats_per_token"].item() == pytest.approx(2 * LN2)
    assert not metrics["loss/nats_per_token"].requires_grad
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, -1 / 3, -1 / 3, -1 / 3, 0])


def test_metric_keeps_its_unit_under_every_reduction() -> None:
    """Summed: the loss is 6 ln 2; the metric stays 2 ln 2 nats per token, so runs can be compared."""
    loss, metrics = token_cross_entropy(LOGPROBS, MASK, num_tokens=3, denominator=1)
    assert loss.item() == pytest.approx(6 * LN2)
    assert metrics["loss/nats_per_token"].item() == pytest.approx(2 * LN2)


WHOLE = [[0, 1, 2, 3, 4]]
SPLITS = [[[0], [1], [2], [3], [4]], [[1, 3], [0, 2, 4]], [[3], [0, 1, 2, 4]]]


@pytest.mark.parametrize("split", SPLITS)
def test_step_mean_does_not_depend_on_the_split(split: list[list[int]]) -> None:
    """Closes T14 and T18: loss, metric and gradient are the same however the step is cut."""
    loss, metric, grad = gradient(split, "step_tokens")
    whole_loss, whole_metric, whole_grad = gradient(WHOLE, "step_tokens")
    assert loss == pytest.approx(whole_loss, rel=1e-12)
    assert metric == pytest.approx(whole_metric, rel=1e-12)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("split", SPLITS)
def test_summed_loss_keeps_the_direction_of_the_step_mean(split: list[list[int]]) -> None:
    """The published sum differs from the step mean by one scalar: tokens of the step over micro-batches."""
    _, masks = step()
    tokens = sum(int(mask.sum()) for mask in masks)
    _, metric, summed = gradient(split, "sum")
    _, whole_metric, mean = gradient(WHOLE, "step_tokens")
    torch.testing.assert_close(summed, mean * (tokens / len(split)), rtol=1e-12, atol=0)
    assert metric == pytest.approx(whole_metric, rel=1e-12)


def test_micro_batch_mean_does_depend_on_the_split() -> None:
    """3 bits | 1, 1, 1 bits: means 3 and 1 make 2 ln 2, where the step mean is 6/4 ln 2."""
    logprobs = [torch.tensor([-3 * LN2]), torch.tensor([-LN2] * 3)]
    total = 0.0
    for part in logprobs:
        mask = torch.ones(len(part), dtype=torch.bool)
        denominator = micro_batch_denominator(mask, num_micro_batches=2)
        total += token_cross_entropy(part, mask, num_tokens=4, denominator=denominator)[0].item()
    assert total == pytest.approx(2 * LN2)
