"""The element-wise and row-wise kernels on tensors: each takes what `fits` says, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.model.native.build import KINDS, LANES, call, library


def fits(x: Tensor, out: torch.dtype) -> bool:
    """Whether the kernels take rows like those of `x` for results in `out`: on a CPU, rows of whole lanes."""
    return (
        x.device.type == "cpu"
        and out in KINDS
        and x.dtype in (torch.float32, out)
        and x.shape[-1] % LANES == 0
        and x.numel() > 0
        and library() is not None
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, as `dtype`; x (..., D), weight (D,) float32."""
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype)
    size = x.shape[-1]
    pointers = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    call("rms_norm", f"{KINDS[x.dtype]}_{KINDS[dtype]}", *pointers, x.numel() // size, size, eps)
    return out


def add_rms_norm_(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm of x + y, as y, and x becomes that sum; x (N, D) float32, y (N, D), both contiguous."""
    out = torch.empty_like(y)
    rows, size = x.shape
    pointers = x.data_ptr(), y.data_ptr(), weight.data_ptr(), out.data_ptr()
    call("add_rms_norm", KINDS[y.dtype], *pointers, rows, size, eps)
    return out


def rms_norm_backward(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of x (as x) and of weight (float32) from that of the result."""
    x, grad = x.contiguous(), grad.contiguous()
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    size = x.shape[-1]
    pointers = (t.data_ptr() for t in (x, weight, grad, grad_x, grad_weight))
    call(
        "rms_norm_backward", f"{KINDS[x.dtype]}_{KINDS[grad.dtype]}", *pointers, x.numel() // size, size, eps
    )
    return grad_x, grad_weight


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; both (N, F), halves of one tensor's rows or tensors of their own."""
    if gate.stride(-1) != 1 or gate.stride() != up.stride():
        gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty(gate.shape, dtype=gate.dtype)
    rows, size = gate.shape
    call(
        "swiglu",
        KINDS[gate.dtype],
        gate.data_ptr(),
        up.data_ptr(),
        gate.stride(0),
        out.data_ptr(),
        rows,
        size,
    )
    return out


def swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    pointers = (t.data_ptr() for t in (gate, up, grad, grad_gate, grad_up))
    call("swiglu_backward", KINDS[gate.dtype], *pointers, gate.numel())
    return grad_gate, grad_up


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, sign: float = 1.0) -> Tensor:
    """Rotate x (N, heads, D) by angles whose cos and sin are (N, 1, D/2); back again with `sign` -1."""
    if x.stride(2) != 1 or x.stride(1) != x.shape[2]:
        x = x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    rows, heads, size = x.shape
    pointers = cos.data_ptr(), sin.data_ptr(), out.data_ptr()
    call("rotary", KINDS[x.dtype], x.data_ptr(), x.stride(0), *pointers, rows, heads, size // 2, sign)
    return out


def log_softmax(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(M,) normalisers of logits / temperature and (M,) log-probabilities of `targets`, float32 nats."""
    normalisers, chosen = torch.empty(len(logits)), torch.empty(len(logits))
    pointers = (t.data_ptr() for t in (logits, targets, normalisers, chosen))
    call("log_softmax", KINDS[logits.dtype], *pointers, *logits.shape, temperature)
    return normalisers, chosen


def log_softmax_backward_(
    logits: Tensor, targets: Tensor, normalisers: Tensor, grad: Tensor, temperature: float
) -> Tensor:
    """`logits` overwritten with (onehot - softmax) * grad / temperature; grad (M,) float32."""
    pointers = (t.data_ptr() for t in (logits, targets, normalisers, grad))
    call("log_softmax_backward", KINDS[logits.dtype], *pointers, *logits.shape, temperature)
    return logits


def draw(logits: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(A,) ids from softmax(logits / temperature) by 64 random bits each, and their log-probabilities (nats).

    logits is (A, V), noise (A,) int64. Temperature 0 takes the first of the likeliest, and its log-probability
    at temperature 1.
    """
    logits = logits.contiguous()
    ids, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    pointers = (t.data_ptr() for t in (logits, noise, ids, logprobs))
    call("draw", KINDS[logits.dtype], *pointers, *logits.shape, temperature)
    return ids, logprobs
