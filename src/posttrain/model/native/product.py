"""The product of few rows by a weight that was laid out for it, on tensors.

In bfloat16 a sum's bits depend on how many products join it at once, and sampler and learner must agree; so the
kernel sums in the stretches that PyTorch's own product does, and is left out where these are not found. Tiles (AMX) sum
a row from its beginning to its end, as PyTorch does there for a few rows but not for all numbers of them; the learner
multiplies by the kernel too (`ops.Weight`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.native.build import KINDS, LANES, call, has, lanes
from posttrain.model.native.newest import from_blocks, in_blocks

_STRETCHES = (512, 1024)
"""Numbers that oneDNN 3 sums by themselves where a row has more."""
_TILE = 32
"""Numbers of a row that AMX multiplies at once: twice tiles.h's SIDE."""


def fits(weight: Tensor) -> bool:
    """Whether the kernel takes such a weight (outputs, inputs): on a CPU, outputs of whole lanes, rows of whole words.

    bfloat16 needs the processor's own products (AVX512-BF16; with AMX, rows of whole tiles).
    """
    kind = KINDS.get(weight.dtype)
    if kind is None or weight.device.type != "cpu" or not has("multiply", kind):
        return False
    return len(weight) % LANES == 0 and stretch_of(weight.dtype, *weight.shape) is not None


def in_tiles(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel multiplies by a contiguous `weight` (outputs, inputs), rounded to `dtype`, in tiles."""
    if dtype != torch.bfloat16 or weight.dtype not in KINDS or weight.device.type != "cpu":
        return False
    is_whole = len(weight) % LANES == 0 and weight.shape[1] % _TILE == 0 and weight.is_contiguous()
    return is_whole and has("lay", "bfloat16_bfloat16") and stretch_of(dtype, *weight.shape) is not None


def laid(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(outputs, inputs) weight, rounded to `dtype`, as `multiply` reads it: blocks of lanes, words side by side."""
    dtype = weight.dtype if dtype is None else dtype
    # not `in_tiles`, which asks for products
    if dtype == torch.bfloat16 and weight.shape[1] % _TILE == 0 and has("lay", "bfloat16_bfloat16"):
        weight = weight.contiguous()
        out = torch.empty(weight.shape, dtype=dtype)
        call("lay", f"{KINDS[weight.dtype]}_bfloat16", weight.data_ptr(), *weight.shape, out.data_ptr())
        return out
    return in_blocks(weight.to(dtype).contiguous().view(torch.float32)).view(dtype)


def plain(weight: Tensor) -> Tensor:
    """What `laid` laid out."""
    return from_blocks(weight.view(torch.float32)).contiguous().view(weight.dtype)


def in_turns(weight: Tensor) -> Tensor:
    """(2 F, inputs) gates and what they are for, one after the other, in turns of lanes, as `multiply_gated` wants it.

    F is a multiple of `lanes()`; then `laid`.
    """
    return weight.view(2, -1, lanes(), weight.shape[1]).transpose(0, 1).reshape(weight.shape)


def one_after_the_other(weight: Tensor) -> Tensor:
    """What was `in_turns`."""
    return weight.view(-1, 2, lanes(), weight.shape[1]).transpose(0, 1).reshape(weight.shape)


def multiply(x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """(A, outputs) = x (A, inputs) @ weight^T; weight as `laid`. No bit of a row depends on the other rows."""
    return _run("multiply", x, weight, len(weight), stretch_of(weight.dtype, *weight.shape), out)


def multiply_gated(x: Tensor, weight: Tensor) -> Tensor:
    """(A, F): `swiglu` of the halves of x (A, inputs) @ weight^T, to the bit; weight `in_turns`, then `laid`."""
    return _run("multiply_gated", x, weight, len(weight) // 2, stretch_of(weight.dtype, *weight.shape))


def _run(
    name: str, x: Tensor, weight: Tensor, width: int, stretch: int | None, out: Tensor | None = None
) -> Tensor:
    assert stretch is not None
    outputs, inputs = weight.shape
    x, out = x.contiguous(), torch.empty(len(x), width, dtype=x.dtype) if out is None else out
    assert out.is_contiguous()
    numbers = 4 // x.element_size()  # of a word
    sizes = len(x), inputs // numbers, stretch // numbers, outputs
    call(name, KINDS[x.dtype], x.data_ptr(), weight.data_ptr(), *sizes, out.data_ptr())
    return out


@lru_cache(maxsize=64)
def stretch_of(dtype: torch.dtype, outputs: int, inputs: int) -> int | None:
    """Numbers that are summed by themselves, so that bfloat16 gives the bits of `F.linear`; None if no choice does.

    outputs is a multiple of LANES.

    Found by sums that are zero but for their rounding, which another order changes.
    """
    if dtype == torch.float32:
        return inputs
    if inputs % (_TILE if torch.cpu._is_amx_tile_supported() else 2):
        return None
    generator = torch.Generator().manual_seed(0)
    halves = [torch.randn(LANES, inputs // 2, generator=generator).to(dtype) for _ in range(2)]
    x, rows = torch.cat([halves[0]] * 2, 1), torch.cat([halves[1], -halves[1]], 1)
    # PyTorch may choose its order by the whole size; the kernel's rows do not depend on each other
    expected, kept = F.linear(x, rows.repeat(outputs // LANES, 1)), laid(rows)
    for stretch in (inputs, *(stretch for stretch in _STRETCHES if stretch < inputs)):
        if torch.equal(_run("multiply", x, kept, LANES, stretch).repeat(1, outputs // LANES), expected):
            return stretch
    return None
