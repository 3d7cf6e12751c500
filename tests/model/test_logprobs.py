"""Chunked log-probabilities against the whole softmax, in value and gradient."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.model import ops
from posttrain.model.logprobs import token_logprobs

ROWS, HIDDEN, VOCAB = 23, 16, 37


def inputs(seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    return hidden, weight, torch.randint(VOCAB, (ROWS,), generator=generator)


def whole(hidden, weight, targets, temperature):
    """The definition, all logits at once."""
    logits = hidden @ weight.t() / temperature
    return torch.log_softmax(logits, 1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("chunk_rows", [1, 7, 22, 23, 512])
def test_value_and_gradients_equal_the_whole_softmax(temperature, chunk_rows):
    """Odd chunks, a last chunk of one row, one chunk for all. Closes T20."""
    hidden, weight, targets = inputs()
    hidden.requires_grad_()
    weight.requires_grad_()
    wide = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    scale = torch.linspace(-2, 3, ROWS)

    found = token_logprobs(hidden, weight, targets, temperature=temperature, chunk_rows=chunk_rows)
    expected = whole(*wide, targets, temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad((found * scale).sum(), (hidden, weight))
    exact = torch.autograd.grad((expected * scale.double()).sum(), wide)
    for one, other in zip(gradients, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_tied_head_adds_its_gradient_to_the_embeddings():
    """The weight is used twice, as an embedding and as the head. Closes T20."""
    _, weight, targets = inputs()
    ids = targets.roll(1)
    tied = weight.clone().requires_grad_()
    (found,) = torch.autograd.grad(token_logprobs(tied[ids].tanh(), tied, targets, chunk_rows=5).sum(), tied)
    wide = weight.double().requires_grad_()
    (expected,) = torch.autograd.grad(whole(wide[ids].tanh(), wide, targets, 1.0).sum(), wide)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_chunks_change_nothing():
    hidden, weight, targets = inputs()
    whole_at_once = token_logprobs(hidden, weight, targets, chunk_rows=ROWS)
    for chunk_rows in range(1, ROWS):
        pieces = token_logprobs(hidden, weight, targets, chunk_rows=chunk_rows)
        # products sum in an order of their own for each number of rows: the last place or two of float32
        torch.testing.assert_close(pieces, whole_at_once, rtol=5e-7, atol=2e-6)


def test_uniform_model_gives_the_log_of_the_vocabulary():
    """Closes T19."""
    hidden, weight, targets = inputs()
    found = token_logprobs(hidden, torch.zeros_like(weight), targets)
    torch.testing.assert_close(found, torch.full((ROWS,), -math.log(VOCAB)))


def test_temperature_by_hand():
    """Logits (ln 9, 0) at temperature 2 are (ln 3, 0): probabilities 3/4 and 1/4."""
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[math.log(9.0)], [0.0]])
    found = token_logprobs(hidden, weight, torch.tensor([0, 1]), temperature=2.0)
    torch.testing.assert_close(found.exp(), torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(*inputs(), temperature=temperature)


def test_no_targets_at_all():
    """A micro-batch without targets adds nothing, and no nan. Closes T18."""
    hidden, weight, targets = inputs()
    weight.requires_grad_()
    hidden.requires_grad_()
    found = token_logprobs(hidden[:0], weight, targets[:0])
    assert found.shape == (0,)
    found.sum().backward()
    assert not weight.grad.any()
    assert not hidden.grad.any()


def test_huge_logits_stay_finite():
    """Logits of 1e4 overflow exp(); the normaliser must be shifted. Closes T17."""
    hidden, weight, targets = inputs()
    hidden = (hidden * 1e4).requires_grad_()
    found = token_logprobs(hidden, weight, targets, chunk_rows=4)
    found.sum().backward()
    assert found.isfinite().all()
    assert hidden.grad.isfinite().all()


def test_bfloat16_hidden_states_give_float32_log_probabilities_and_weight_gradients():
    hidden, weight, targets = inputs()
    narrow, master = hidden.bfloat16().requires_grad_(), weight.clone().requires_grad_()
    found = token_logprobs(narrow, master, targets)
    found.sum().backward()
    assert (found.dtype, narrow.grad.dtype, master.grad.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    )
    wide = narrow.detach().double(), weight.bfloat16().double().requires_grad_()
    exact = whole(*wide, targets, 1.0)
    exact.sum().backward()
    assert (found.double() - exact).abs().max() < 0.1  # logits of about 4, rounded to 1/64
    assert (master.grad.double() - wide[1].grad).abs().max() < 0.05 * wide[1].grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_added_in_place_are_autograds(dtype, monkeypatch):
    """Over blocks of the vocabulary whose last is a rest, on top of what was there, and where there was nothing."""
    monkeypatch.setattr(ops, "_BLOCK_ROWS", 7)
    hidden, weight, targets = inputs()
    hidden, weight = hidden.to(dtype), weight.float().requires_grad_()
    (expected,) = torch.autograd.grad(token_logprobs(hidden, weight, targets, chunk_rows=5).sum(), weight)
    for times in (1, 2):
        token_logprobs(hidden, weight, targets, chunk_rows=5, accumulate=True).sum().backward()
        torch.testing.assert_close(weight.grad, times * expected, rtol=1e-6, atol=1e-6)
