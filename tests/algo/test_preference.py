"""Bradley-Terry loss, its smoothing, and the metrics of pairs."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.algo.preference import bradley_terry, logistic_loss, pair_metrics

CHOSEN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
REJECTED = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
"""Margins 1.5, -2, 0: a win, a loss and a tie."""


def softplus(x: float) -> float:
    """-log sigmoid(-x), written out."""
    return math.log1p(math.exp(x))


def test_loss_by_hand() -> None:
    """[ln(1 + e^-1.5) + ln(1 + e^2) + ln 2] / 4 of a step of four pairs (0.2014 + 2.1269 + 0.6931) / 4."""
    loss, metrics = bradley_terry(CHOSEN, REJECTED, num_pairs=4)
    expected = (softplus(-1.5) + softplus(2.0) + math.log(2)) / 4
    assert expected == pytest.approx((0.2014 + 2.1269 + 0.6931) / 4, abs=1e-4)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert metrics["loss/nats_per_pair"].item() == pytest.approx(expected, rel=1e-12)


def test_metrics_by_hand() -> None:
    """Of three pairs: chosen 1.5/3, rejected 2/3, margins -0.5/3, one win and half a tie 1.5/3, ties 1/3."""
    _, metrics = bradley_terry(CHOSEN, REJECTED, num_pairs=3)
    found = {name: value.item() for name, value in metrics.items() if name.startswith("rewards/")}
    assert found == pytest.approx(
        {
            "rewards/chosen": 0.5,
            "rewards/rejected": 2 / 3,
            "rewards/margins": -0.5 / 3,
            "rewards/accuracies": 0.5,
            "rewards/ties": 1 / 3,
        }
    )


def test_gradient_pushes_the_sides_apart() -> None:
    """d loss / d chosen = -sigmoid(-margin) / N; at margin 0 and N = 4 it is -1/8, and +1/8 for rejected."""
    chosen = CHOSEN.clone().requires_grad_()
    rejected = REJECTED.clone().requires_grad_()
    bradley_terry(chosen, rejected, num_pairs=4)[0].backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad[2].item() == -0.125
    assert rejected.grad[2].item() == 0.125
    assert chosen.grad[1].item() == pytest.approx(-1 / (1 + math.exp(-2)) / 4)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, num_pairs=4)[0], (chosen, rejected))


def test_loss_and_metrics_add_up_over_any_split() -> None:
    """Closes T14 for reward models."""
    whole_loss, whole = bradley_terry(CHOSEN, REJECTED, num_pairs=3)
    parts = [bradley_terry(CHOSEN[s], REJECTED[s], num_pairs=3) for s in (slice(0, 1), slice(1, 3))]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole_loss.item(), rel=1e-12)
    for name, value in whole.items():
        assert sum(metrics[name].item() for _, metrics in parts) == pytest.approx(value.item(), rel=1e-12)


def test_smoothing_by_hand() -> None:
    """z = 1.5, e = 0.1: 0.9 * 0.2014 + 0.1 * 1.7014 = 0.3514."""
    logits = torch.tensor([1.5], dtype=torch.float64)
    assert logistic_loss(logits, label_smoothing=0.1).item() == pytest.approx(0.3514133, abs=1e-7)


def test_smoothing_has_its_minimum_at_the_believed_odds() -> None:
    """With e = 0.2 the loss is least where sigmoid(z) = 0.8: z = ln 4. There its gradient vanishes."""
    z = torch.tensor([math.log(4)], dtype=torch.float64, requires_grad=True)
    logistic_loss(z, label_smoothing=0.2).sum().backward()
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(0.0, abs=1e-15)


def test_no_smoothing_survives_an_infinite_margin() -> None:
    """Without smoothing the other side's infinite loss must not appear as 0 * inf."""
    assert logistic_loss(torch.tensor([math.inf])).item() == 0.0


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0])
def test_smoothing_must_be_a_minority(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        logistic_loss(CHOSEN, label_smoothing=smoothing)


def test_unequal_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        bradley_terry(CHOSEN, REJECTED[:1], num_pairs=3)


def test_masked_pairs_count_for_nothing() -> None:
    """The second pair is dropped: chosen (2 + 0.5) / 3, accuracies (1 + 0.5) / 3."""
    mask = torch.tensor([True, False, True])
    chosen = torch.where(mask, CHOSEN, math.nan)
    metrics = pair_metrics(chosen, REJECTED, mask, num_pairs=3)
    assert metrics["rewards/chosen"].item() == pytest.approx(2.5 / 3)
    assert metrics["rewards/accuracies"].item() == pytest.approx(0.5)
