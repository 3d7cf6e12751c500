"""The element-wise pieces of a layer against their plain formulas, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from posttrain.model.ops import embedded, rms_norm, rotary, swiglu

EPS = 0.3
"""Large, so that leaving it out shows."""


def plain_rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def plain_rotary(x, cos, sin):
    """By complex numbers: (first + i second) * (cos + i sin)."""
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], -1)


def plain_swiglu(gate, up):
    return gate / (1 + torch.exp(-gate)) * up


def angles(rows, half, dtype):
    turn = torch.arange(rows * half, dtype=dtype).view(rows, 1, half)
    return turn.cos(), turn.sin()


def inputs(name, dtype=torch.float64):
    torch.manual_seed(3)
    if name == "rms_norm":
        return torch.randn(5, 8, dtype=dtype) * 2, torch.rand(8, dtype=dtype) + 0.5
    if name == "rotary":
        return (torch.randn(5, 3, 8, dtype=dtype),)
    return torch.randn(5, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype)


def ours(name, *tensors):
    if name == "rms_norm":
        return rms_norm(*tensors, EPS)
    if name == "rotary":
        return rotary(*tensors, *angles(5, 4, tensors[0].dtype))
    return swiglu(*tensors)


def plain(name, *tensors):
    if name == "rotary":
        return plain_rotary(*tensors, *angles(5, 4, tensors[0].dtype))
    return {"rms_norm": plain_rms_norm, "swiglu": plain_swiglu}[name](*tensors)


NAMES = ("rms_norm", "rotary", "swiglu")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference", "leaf without grad"])
def test_value_is_the_plain_formulas_with_and_without_gradients(name, mode):
    tensors = [tensor.requires_grad_(mode != "leaf without grad") for tensor in inputs(name, torch.float32)]
    context = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode, torch.enable_grad)
    with context():
        found = ours(name, *tensors)
    expected = plain(name, *[tensor.double() for tensor in tensors])
    torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert found.requires_grad == (mode == "grad")


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_the_plain_formula(name):
    """The plain formula's gradient is autograd's, in float64; ours runs in float32."""
    tensors = [tensor.requires_grad_() for tensor in inputs(name, torch.float32)]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = ours(name, *tensors)
    weights = torch.randn(out.shape, dtype=torch.float64)
    found = torch.autograd.grad((out * weights.float()).sum(), tensors)
    expected = torch.autograd.grad((plain(name, *wide) * weights).sum(), wide)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope_of_the_value(name):
    """Central differences in float64, every entry of the Jacobian."""
    tensors = tuple(tensor.requires_grad_() for tensor in inputs(name))
    assert torch.autograd.gradcheck(lambda *given: ours(name, *given), tensors, eps=1e-6, atol=1e-7)


def test_rms_norm_is_float32_inside_and_rounds_once():
    """bfloat16 in and out, float32 weight and arithmetic, as the Hugging Face models have it."""
    x, weight = inputs("rms_norm", torch.float32)
    narrow = x.bfloat16().requires_grad_()
    wide = narrow.detach().double().requires_grad_()
    found, expected = rms_norm(narrow, weight, EPS), plain_rms_norm(wide, weight.double())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.detach().bfloat16())  # rounded once, at the end
    out = torch.randn(found.shape).bfloat16()
    (slope,) = torch.autograd.grad(found, narrow, out)
    (exact,) = torch.autograd.grad(expected, wide, out.double())
    torch.testing.assert_close(slope.double(), exact, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_incoming_gradients_are_left_as_they_were(name, dtype):
    tensors = [tensor.requires_grad_() for tensor in inputs(name, dtype)]
    before = [tensor.detach().clone() for tensor in tensors]
    out = ours(name, *tensors)
    grad = torch.randn_like(out)
    kept = grad.clone()
    torch.autograd.grad(out, tensors, grad)
    assert torch.equal(grad, kept)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


def test_rms_norm_takes_any_number_of_leading_axes():
    x, weight = torch.randn(2, 3, 4, 8, requires_grad=True), torch.rand(8, requires_grad=True)
    rms_norm(x, weight, EPS).square().sum().backward()
    wide = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    plain_rms_norm(*wide).square().sum().backward()
    torch.testing.assert_close(weight.grad.double(), wide[1].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), wide[0].grad, rtol=1e-4, atol=1e-5)


def test_rms_norm_may_widen_or_narrow():
    """A float32 residual stream enters blocks that compute in bfloat16."""
    x, weight = inputs("rms_norm", torch.float32)
    x.requires_grad_()
    out = rms_norm(x, weight, EPS, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rms_norm(x, weight, EPS).bfloat16())
    (slope,) = torch.autograd.grad(out.float().sum(), x)
    (exact,) = torch.autograd.grad(rms_norm(x, weight, EPS).sum(), x)
    assert slope.dtype == torch.float32
    torch.testing.assert_close(slope, exact)


def test_embedded_rows_add_their_gradients_in_place():
    """Tokens that come twice count twice, and what was there stays."""
    weight = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([4, 1, 4, 0])
    by = torch.arange(12.0).view(4, 3)
    (expected,) = torch.autograd.grad((F.embedding(ids, weight) * by).sum(), weight)
    found = embedded(ids, weight)
    assert torch.equal(found, weight[ids])
    (found * by).sum().backward()
    assert torch.equal(weight.grad, expected)
    (embedded(ids, weight) * by).sum().backward()
    assert torch.equal(weight.grad, 2 * expected)
    with torch.no_grad():
        assert not embedded(ids, weight).requires_grad
