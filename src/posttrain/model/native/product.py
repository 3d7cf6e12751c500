"""The product of few float32 rows by a weight that was laid out for it, on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.model.native.build import LANES, call, library


def fits(weight: Tensor) -> bool:
    """Whether the kernel takes such a weight (outputs, inputs): float32 on a CPU, outputs of whole lanes."""
    is_float32 = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return is_float32 and len(weight) % LANES == 0 and library() is not None


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """(A, outputs) = x (A, inputs) @ weight^T; weight as `in_blocks`. No bit of a row depends on the other rows."""
    x = x.contiguous()
    outputs, inputs = weight.shape
    out = torch.empty(len(x), outputs)
    call("multiply", "float32", x.data_ptr(), weight.data_ptr(), len(x), inputs, outputs, out.data_ptr())
    return out
