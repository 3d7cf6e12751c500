"""Linear maps whose weights' gradients are added where they stay, and the kernel that adds them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from posttrain.model import ops
from posttrain.model.native import outer
from posttrain.model.ops import add_product_, linear

BF16 = torch.bfloat16
ROWS, OUTPUTS, INPUTS = 33, 96, 64
needs_products = pytest.mark.skipif(
    not outer.fits(torch.zeros(32, 32), torch.zeros(1, 32, dtype=BF16), torch.zeros(1, 32, dtype=BF16)),
    reason="this processor does not multiply bfloat16",
)


def normal(*size: int, seed: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("requires", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, BF16])
def test_gradients_are_the_plain_formulas_on_top_of_what_was_there(dtype, requires):
    """dX = dY W, dW = dY^T X, with a float32 weight beside bfloat16 inputs."""
    master = torch.promote_types(dtype, torch.float32)
    x = normal(ROWS, INPUTS, seed=1, dtype=dtype).requires_grad_(requires[0])
    weight = normal(OUTPUTS, INPUTS, seed=2, dtype=master).requires_grad_(requires[1])
    grad = normal(ROWS, OUTPUTS, seed=3, dtype=dtype)
    for times in (1, 2):
        found = linear(x, weight)
        assert torch.equal(found, F.linear(x, weight.to(dtype)))
        found.backward(grad)
        exact = times * grad.double().t() @ x.detach().double()
        tolerance = {BF16: 0.01}.get(dtype, 1e-5) * float(exact.abs().max())
        if requires[1]:
            assert weight.grad is not None and weight.grad.dtype == master
            torch.testing.assert_close(weight.grad.double(), exact, rtol=0, atol=tolerance)
        else:
            assert weight.grad is None
    if requires[0]:
        assert x.grad is not None
        torch.testing.assert_close(x.grad, 2 * (grad @ weight.detach().to(dtype)), rtol=1e-2, atol=1e-2)


def test_nothing_is_recorded_where_no_gradient_is_wanted():
    x, weight = normal(3, 8, seed=1), normal(4, 8, seed=2, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        assert not linear(x, weight).requires_grad
    assert not linear(x, weight.detach()).requires_grad


@needs_products
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(1, 32, 32), (2, 64, 96), (31, 32, 64), (33, 96, 32), (1000, 64, 608), (513, 576, 192)],
)
def test_outer_products_are_float64s_to_float32s_rounding(rows, outputs, inputs):
    """Also over several stretches of rows, as 1,000 of 608 are."""
    a, x = normal(rows, outputs, seed=1), normal(rows, inputs, seed=2)
    total = normal(outputs, inputs, seed=3, dtype=torch.float32)
    exact = total.double() + a.double().t() @ x.double()
    found = add_product_(total, a, x)
    assert found is total
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * rows)


@needs_products
def test_strided_and_empty_inputs():
    a, x = normal(64, 40, seed=1).t(), normal(2 * 40, 32, seed=2)[::2]
    exact = a.double().t() @ x.double()
    torch.testing.assert_close(add_product_(torch.zeros(64, 32), a, x).double(), exact, rtol=1e-5, atol=1e-5)
    total = torch.ones(64, 32)
    assert torch.equal(add_product_(total, a[:0], x[:0]), torch.ones(64, 32))


@pytest.mark.parametrize(
    ("total", "dtype"),
    [
        (torch.zeros(48, 32), BF16),
        (torch.zeros(32, 48), BF16),
        (torch.zeros(32, 32), torch.float32),
        (torch.zeros(32, 32, dtype=BF16), BF16),
        (torch.zeros(64, 32)[::2], BF16),
    ],
    ids=["outputs", "inputs", "float32", "bfloat16", "strided"],
)
def test_what_the_kernel_does_not_take_is_added_all_the_same(total, dtype, monkeypatch):
    monkeypatch.setattr(ops, "_BLOCK_ROWS", 7)
    a, x = normal(5, len(total), seed=1, dtype=dtype), normal(5, total.shape[1], seed=2, dtype=dtype)
    assert not outer.fits(total, a, x)
    exact = a.double().t() @ x.double()
    torch.testing.assert_close(add_product_(total, a, x).double(), exact, rtol=0.02, atol=0.02)
