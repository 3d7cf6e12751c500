"""Sums of outer products, the gradients of weights, on tensors: where the processor multiplies bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.model.native.build import call, has

_SIDES = 32
"""Outputs, and inputs, that go together; outer.cpp has the same."""


def fits(total: Tensor, a: Tensor, x: Tensor) -> bool:
    """Whether the kernel adds a^T x to `total` (O, I): bfloat16 to float32, whole blocks, on a CPU with AVX512-BF16."""
    return (
        (total.dtype, a.dtype, x.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
        and total.device.type == "cpu"
        and total.is_contiguous()
        and all(size % _SIDES == 0 for size in total.shape)
        and has("add_outer", "bfloat16")
    )


def add_outer_(total: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """`total` (O, I) with a^T x added, a (N, O), x (N, I): each number's products one after the other, in float32."""
    a, x = a.contiguous(), x.contiguous()
    call("add_outer", "bfloat16", a.data_ptr(), x.data_ptr(), len(x), *total.shape, total.data_ptr())
    return total
