"""Log-probabilities of chosen tokens, a chunk of positions at a time.

Logits are (chunk, V) at most: the forward pass keeps one float32 normaliser per position and the backward
pass computes each chunk's logits again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.model.native import elementwise

CHUNK_ROWS = 512


def _log_softmax(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(M,) float32 normalisers of logits / temperature, log-probabilities of `targets`; logits may be overwritten."""
    if elementwise.fits(logits, logits.dtype):
        return elementwise.log_softmax(logits, targets, temperature)
    wide = _scaled(logits, temperature)
    del logits  # a gigabyte for some vocabularies, and the caller keeps none
    normalisers = torch.logsumexp(wide, 1)
    return normalisers, wide.gather(1, targets[:, None])[:, 0] - normalisers


def _log_softmax_backward(
    logits: Tensor, targets: Tensor, normalisers: Tensor, grad: Tensor, temperature: float
) -> Tensor:
    """(M, V), in the logits' dtype: (onehot - softmax) * grad / temperature; the logits may be overwritten."""
    if elementwise.fits(logits, logits.dtype):
        return elementwise.log_softmax_backward_(logits, targets, normalisers, grad, temperature)
    scale, dtype = grad[:, None] / temperature, logits.dtype
    wide = _scaled(logits, temperature)
    del logits
    wide.sub_(normalisers[:, None]).exp_().mul_(-scale)
    return wide.scatter_add_(1, targets[:, None], scale).to(dtype)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """In float32; float32 logits themselves are divided."""
    wide = logits.float()
    return wide if temperature == 1.0 else wide.div_(temperature)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_rows: int
    ) -> Tensor:
        cast = weight.to(hidden.dtype)
        normalisers = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        chosen = torch.empty_like(normalisers)
        for start in range(0, len(targets), chunk_rows):
            rows = slice(start, start + chunk_rows)
            normalisers[rows], chosen[rows] = _log_softmax(
                hidden[rows] @ cast.t(), targets[rows], temperature
            )
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.temperature, ctx.chunk_rows = temperature, chunk_rows
        return chosen

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:  # type: ignore[override]
        hidden, weight, targets, normalisers = ctx.saved_tensors
        cast, grad = weight.to(hidden.dtype), grad.contiguous()
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] and not len(targets) else None
        for start in range(0, len(targets), ctx.chunk_rows):
            rows = slice(start, start + ctx.chunk_rows)
            narrow = _log_softmax_backward(
                hidden[rows] @ cast.t(), targets[rows], normalisers[rows], grad[rows], ctx.temperature
            )
            torch.mm(narrow, cast, out=grad_hidden[rows])
            if ctx.needs_input_grad[1]:
                grad_weight = _plus_product(grad_weight, narrow, hidden[rows], weight.dtype)
            del narrow  # before the next chunk's, as large
        return grad_hidden, grad_weight, None, None, None


def _plus_product(total: Tensor | None, grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`total` + grad^T x in `dtype`, in place: (V, H) numbers are a tenth of a gigabyte in a small model."""
    if total is None:
        return (grad.t() @ x).to(dtype)
    if grad.dtype == dtype:
        return total.addmm_(grad.t(), x)
    return total.add_(grad.t() @ x)


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """(M,) float32 nats: log softmax(hidden @ weight^T / temperature) at `targets`.

    hidden is (M, H) in the compute dtype, weight (V, H), targets (M,) int64. Softmax is in float32.
    Exact in value and gradient whatever `chunk_rows` is. Raises ValueError if temperature <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    result: Tensor = _ChunkedLogprobs.apply(hidden, weight, targets, float(temperature), chunk_rows)
    return result
