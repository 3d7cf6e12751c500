"""Log-probabilities of chosen tokens, a chunk of positions at a time.

Logits are (chunk, V) at most: the forward pass keeps one float32 normaliser per position and the backward
pass computes each chunk's logits again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.model.native import elementwise
from posttrain.model.ops import Weight, add_product_, gradient_of

CHUNK_ROWS = 512


def _log_softmax(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(M,) float32 normalisers of logits / temperature, log-probabilities of `targets`; logits may be overwritten."""
    if elementwise.fits(logits, logits.dtype):
        return elementwise.log_softmax(logits, targets, temperature)
    wide = _scaled(logits, temperature)
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
    wide.sub_(normalisers[:, None]).exp_().mul_(-scale)
    return wide.scatter_add_(1, targets[:, None], scale).to(dtype)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """In float32; float32 logits themselves are divided."""
    wide = logits.float()
    return wide if temperature == 1.0 else wide.div_(temperature)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        chunk_rows: int,
        accumulate: bool,
    ) -> Tensor:
        normalisers = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        chosen = torch.empty_like(normalisers)
        for rows, logits in _chunks(hidden, weight, chunk_rows):
            normalisers[rows], chosen[rows] = _log_softmax(logits, targets[rows], temperature)
        ctx.save_for_backward(hidden, weight, targets, normalisers)
        ctx.temperature, ctx.chunk_rows = temperature, chunk_rows
        ctx.accumulates_into = weight if accumulate else None
        return chosen

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, targets, normalisers = ctx.saved_tensors
        cast, grad = weight.to(hidden.dtype), grad.contiguous()
        grad_hidden = torch.empty_like(hidden)
        own, total = ctx.accumulates_into, None
        if ctx.needs_input_grad[1]:
            total = torch.zeros_like(weight) if own is None else gradient_of(own)
        for rows, logits in _chunks(hidden, cast, ctx.chunk_rows):
            given = targets[rows], normalisers[rows], grad[rows]
            narrow = _log_softmax_backward(logits, *given, ctx.temperature)
            torch.mm(narrow, cast, out=grad_hidden[rows])
            if total is not None:
                add_product_(total, narrow, hidden[rows])
        return grad_hidden, total if own is None else None, None, None, None, None


def _chunks(hidden: Tensor, weight: Tensor, chunk_rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `hidden` and their logits, which the next chunk's overwrite."""
    buffer = hidden.new_empty(min(chunk_rows, len(hidden)), len(weight))
    by = Weight(weight, hidden.dtype)
    for start in range(0, len(hidden), chunk_rows):
        rows = slice(start, min(start + chunk_rows, len(hidden)))
        yield rows, by.of(hidden[rows], out=buffer[: rows.stop - start])


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_rows: int = CHUNK_ROWS,
    accumulate: bool = False,
) -> Tensor:
    """(M,) float32 nats: log softmax(hidden @ weight^T / temperature) at `targets`.

    hidden is (M, H) in the compute dtype, weight (V, H), targets (M,) int64. Softmax is in float32.
    Exact in value and gradient whatever `chunk_rows` is. With `accumulate` weight is a leaf whose `grad` the backward
    pass adds to, and autograd gets none: it would make a whole one and add it. Raises ValueError if temperature <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    options = float(temperature), chunk_rows, accumulate
    result: Tensor = _ChunkedLogprobs.apply(hidden, weight, targets, *options)
    return result
