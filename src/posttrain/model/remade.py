"""Values that a backward pass makes again from what it keeps anyway, in place of keeping them too.

Between its two passes a layer would keep its products' inputs: what its norms give and the gated product, a third of
all. Each is one cheap pass over tensors that are kept in any case, and gives the same bits when it is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Remade:
    """`value`, which `make` gives again, bit for bit: made for the first of its readers and dropped after the last."""

    def __init__(self, value: Tensor, make: Callable[[], Tensor]) -> None:
        # only where it lies: what is not to be kept must not be held here
        self._address, self._size = value.data_ptr(), value.numel()
        self._make = make
        self._value: Tensor | None = None
        self._readers = 0

    def is_whole(self, tensor: Tensor) -> bool:
        """Whether `tensor` is all of the value, in some order of its axes."""
        return tensor.data_ptr() == self._address and tensor.numel() == self._size

    def expect_reader(self) -> None:
        """One more `read` will come."""
        self._readers += 1

    def read(self) -> Tensor:
        """The value."""
        if self._value is None:
            with torch.no_grad():
                self._value = self._make()
        value = self._value
        self._readers -= 1
        if self._readers <= 0:
            self._value = None
        return value


def not_kept(values: Sequence[Remade]) -> AbstractContextManager[Any]:
    """A context whose operations keep `values` for no backward pass.

    Their memory is free as soon as nothing else holds it; while the context lasts the caller does. Of nested contexts
    of this kind, and of PyTorch's activation checkpointing, only the innermost acts.
    """

    if not values:
        return nullcontext()

    def pack(tensor: Tensor) -> Any:
        for value in values:
            if value.is_whole(tensor):
                value.expect_reader()
                return value, tensor.size(), tensor.stride()
        return tensor

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        value, size, stride = packed
        return value.read().as_strided(size, stride)  # type: ignore[no-any-return]

    return saved_tensors_hooks(pack, unpack)
