"""The product of few float32 rows by a weight that was laid out for it, on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.model.native.build import LANES, call, library
from posttrain.model.native.newest import in_blocks


def fits(weight: Tensor) -> bool:
    """Whether the kernel takes such a weight (outputs, inputs): float32 on a CPU, outputs of whole lanes."""
    is_float32 = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return is_float32 and len(weight) % LANES == 0 and library() is not None


def laid_out(weight: Tensor) -> Tensor:
    """`weight` (outputs, inputs) in blocks, as `multiply` reads it; the same shape."""
    return in_blocks(weight)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """(A, outputs) = x (A, inputs) @ weight^T, whose rows do not depend on each other to the bit; weight `laid_out`."""
    x = x.contiguous()
    outputs, inputs = weight.shape
    out = torch.empty(len(x), outputs)
    call("multiply", "float32", x.data_ptr(), weight.data_ptr(), len(x), inputs, outputs, out.data_ptr())
    return out
