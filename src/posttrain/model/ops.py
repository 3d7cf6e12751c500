"""The pieces of a decoder layer, with backward passes that keep little.

Each computes what the plain formula computes, in float32 inside where the Hugging Face models do,
and saves only its inputs. `tests/model/test_decoder.py` holds them to the plain formula. On a CPU each is one
pass of a compiled kernel where there is a compiler (`model/native`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.native import elementwise, outer, product

_BLOCK_ROWS = 4096
"""Rows of a weight whose gradient is computed at once."""


def _is_native(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    return weight.dtype == torch.float32 and elementwise.fits(x, dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    if _is_native(x, weight, dtype):
        return elementwise.rms_norm(x, weight, eps, dtype)
    precise = torch.promote_types(weight.dtype, torch.float32)
    return F.rms_norm(x.to(precise), weight.shape, weight.to(precise), eps).to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _rms_norm(x, weight, eps, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if _is_native(x, weight, grad.dtype):
            return *elementwise.rms_norm_backward(x, weight, grad, ctx.eps), None, None
        precise = torch.promote_types(weight.dtype, torch.float32)
        wide = x.to(precise)
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(ctx.eps))
        normed = wide * rstd
        grad = grad.to(precise)
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        scaled = grad * weight
        inner = (scaled * normed).mean(-1, keepdim=True)
        grad_x = scaled.sub_(normed.mul_(inner)).mul_(rstd)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv:1910.07467 eq. 4), as `dtype` (x's if None).

    x is (..., D), weight (D,) in at least float32, which the arithmetic inside is done in.
    """
    out = x.dtype if dtype is None else dtype
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps, out)  # type: ignore[no-any-return]
    return _rms_norm(x, weight, eps, out)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, *, sign: float = 1.0) -> Tensor:
    half = x.shape[-1] // 2
    if cos.dtype == x.dtype and half % elementwise.LANES == 0 and elementwise.fits(x, x.dtype):
        return elementwise.rotary(x, cos, sin, sign=sign)
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin, value=sign)
    return out


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, sign=-1.0), None, None


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each head's (first half, second half) pairs by its position's angles (arXiv:2104.09864 eq. 34).

    x is (N, heads, D); cos and sin are (N, 1, D/2) in x's dtype. The halves are paired as the Hugging
    Face Llama and OLMo 2 do it.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Rotary.apply(x, cos, sin)  # type: ignore[no-any-return]
    return _rotate(x, cos, sin)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return elementwise.swiglu(gate, up) if elementwise.fits(gate, gate.dtype) else F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        if elementwise.fits(gate, grad.dtype):
            return elementwise.swiglu_backward(gate, up, grad)
        grad_up = F.silu(gate).mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, grad_up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, element by element (arXiv:2002.05202 eq. 5)."""
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return]
    return _gated(gate, up)


def gradient_of(weight: Tensor) -> Tensor:
    """`weight.grad`, zeros if there was none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def add_product_(total: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """`total` (O, I), with grad^T x added: grad (N, O), x (N, I), whose type may be narrower than that of `total`."""
    if outer.fits(total, grad, x):
        return outer.add_outer_(total, grad, x)
    if grad.dtype == total.dtype:
        return total.addmm_(grad.t(), x)
    # a block is added while a cache still holds it
    for start in range(0, len(total), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        total[rows] += grad[:, rows].t() @ x
    return total


class Weight:
    """(O, I) weight, rounded to `dtype`, to multiply by: a row's bits do not depend on how many there are.

    PyTorch's own do where it multiplies in tiles (AMX), so there the engine's kernel does it.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self._is_laid = product.in_tiles(weight, dtype)
        self._weight = product.laid(weight, dtype) if self._is_laid else weight.to(dtype)

    def of(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """(N, O) x @ weight^T, x (N, I); into `out` if that is given."""
        if self._is_laid:
            return product.multiply(x, self._weight, out=out)
        return F.linear(x, self._weight) if out is None else torch.mm(x, self._weight.t(), out=out)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return Weight(weight.detach(), x.dtype).of(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        if ctx.weight.requires_grad:
            add_product_(gradient_of(ctx.weight), grad, x)
        return grad @ ctx.weight.detach().to(grad.dtype) if ctx.needs_input_grad[0] else None, None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """(N, O) x @ weight^T in x's type; x is (N, I), weight (O, I) a leaf, whose `grad` the backward pass adds to.

    The weight, cast, is kept for no backward pass, and its gradient is summed in its own type.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)  # type: ignore[no-any-return]
    return Weight(weight.detach(), x.dtype).of(x)


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        gradient_of(ctx.weight).index_put_((ids,), grad, accumulate=True)
        return None, None


def embedded(ids: Tensor, weight: Tensor) -> Tensor:
    """(N, H) rows of `weight` (V, H), a leaf whose `grad` the backward pass adds these rows' gradients to.

    Autograd would make a gradient with a row for each of the vocabulary, and add all of them.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        return _Embedded.apply(ids, weight)  # type: ignore[no-any-return]
    return F.embedding(ids, weight)
