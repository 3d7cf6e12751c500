"""Keys and values of all layers for a table of sequences that grows as it must."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.attention import round_up
from posttrain.model.decoder import Shape
from posttrain.model.native.attention import fits
from posttrain.model.native.newest import Trunk, laid_keys, laid_values


class Cache:
    """Keys and values, each (layers, slots, kv_heads, length, head_dim), for up to `slots` sequences.

    Slots are kept dense by their owner, who moves the last one into the place of one that ended.

    Where the compiled kernel attends, `is_blocked`: keys lie in blocks of some positions with the dimension
    outermost, so that it multiplies a block at a time, and values by pairs where it multiplies bfloat16; a block's
    place and size are those of its positions. Then a sequence may begin with a trunk that lies elsewhere, and its slot
    holds what follows. Not with `plain`.
    """

    def __init__(
        self, shape: Shape, *, dtype: torch.dtype, device: torch.device, plain: bool = False
    ) -> None:
        self._shape, self.dtype, self._device = shape, dtype, device
        self.is_blocked = not plain and fits(dtype, device, head_dim=shape.head_dim)
        self.keys = self.values = self._empty(0, 0)

    def _empty(self, slots: int, length: int) -> Tensor:
        shape = self._shape
        size = (shape.num_layers, slots, shape.num_kv_heads, length, shape.head_dim)
        # zeros: what lies behind the attention mask must at least be finite
        return torch.zeros(size, dtype=self.dtype, device=self._device)

    @property
    def slots(self) -> int:
        """Sequences there is room for."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """Positions there is room for in each."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return 2 * self.keys.numel() * self.keys.element_size()

    @staticmethod
    def bytes_per_token(shape: Shape, dtype: torch.dtype) -> int:
        """Bytes one position of one sequence takes."""
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize

    def reserve(self, slots: int, length: int, *, at_most: int | None = None) -> None:
        """Make room for `slots` sequences of `length` positions; so much of theirs stays, the rest may go.

        Room to grow is added up to `at_most` positions.
        """
        old_slots, old_length = self.slots, self.length
        if slots <= old_slots and length <= old_length:
            return
        # half more than asked, so that growing token by token copies seldom
        grown_length = length + length // 2
        new_length = round_up(grown_length if at_most is None else max(length, min(grown_length, at_most)))
        kept_slots, kept_length = min(slots, old_slots), min(new_length, old_length)
        for name in ("keys", "values"):
            grown = self._empty(slots, new_length)
            grown[:, :kept_slots, :, :kept_length] = getattr(self, name)[:, :kept_slots, :, :kept_length]
            setattr(self, name, grown)

    def put(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Start slot `slot` with the keys and values, each (layers, kv_heads, length, head_dim), of a prompt."""
        if self.is_blocked:
            filling = (0, 0, 0, round_up(keys.shape[2]) - keys.shape[2])
            keys, values = laid_keys(F.pad(keys, filling)), laid_values(F.pad(values, filling))
        self.keys[:, slot, :, : keys.shape[2]] = keys
        self.values[:, slot, :, : values.shape[2]] = values

    def trunk(self, keys: Tensor, values: Tensor) -> Trunk:
        """The start of sequences: keys and values (layers, kv_heads, length, head_dim) of some whole blocks."""
        return Trunk(laid_keys(keys), laid_values(values))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of slot `source` over slot `target`."""
        if source != target:
            whole = round_up(length) if self.is_blocked else length  # a block's positions lie all over it
            self.keys[:, target, :, :whole] = self.keys[:, source, :, :whole]
            self.values[:, target, :, :whole] = self.values[:, source, :, :whole]

    def clear(self) -> None:
        """Give the memory back."""
        self.keys = self.values = self._empty(0, 0)
