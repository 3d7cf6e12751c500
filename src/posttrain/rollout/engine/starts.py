"""The starts of prompts that samples share: held once, read together."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from posttrain.model.attention import round_up
from posttrain.model.native.newest import Trunk
from posttrain.model.tree import shared_length
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.sampler import Request


@dataclass(slots=True, weakref_slot=True, eq=False)
class Start:
    """The first tokens of one or more prompts; they lie in `trunk` as soon as one of the prompts was run."""

    ids: np.ndarray
    trunk: Trunk | None = None

    @property
    def depth(self) -> int:
        """Tokens."""
        return len(self.ids)

    def fill(self, cache: Cache, keys: Tensor, values: Tensor) -> None:
        """Keep the start of a prompt's keys and values (layers, kv_heads, length, D), unless another's are here."""
        if self.depth and self.trunk is None:
            self.trunk = cache.trunk(keys[:, :, : self.depth], values[:, :, : self.depth])


class Starts:
    """Which start each prompt takes: what it has in common with others, or all of it for its own samples."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._common: weakref.ref[Start] | None = None

    def of(self, request: Request, following: Sequence[int] | None) -> Start:
        """The start of the request's prompt; `following` is the prompt of the one after it.

        Depths are multiples of 32, so that a start and a slot for the rest take no more room than one slot.
        """
        ids, samples = np.asarray(request.prompt_ids, np.int64), len(request.seeds)
        if not self._cache.is_blocked:
            return Start(ids[:0])

        def is_better(depth: int) -> bool:
            # a step reads what follows a start for each sample, and a start of the prompt's own once
            return depth > 0 and 2 * samples * (len(ids) - depth) <= len(ids)

        common = None if self._common is None else self._common()
        if common is not None and is_better(common.depth) and _begins(ids, common.ids):
            return common
        shared = 0 if following is None else shared_length(ids, np.asarray(following, np.int64))
        depth = _whole(min(shared, len(ids) - 1))
        if is_better(depth):
            start = Start(ids[:depth])
            self._common = weakref.ref(start)  # forgotten with the last sample that has it
            return start
        return Start(ids[: _whole(len(ids) - 1)])


def _begins(ids: np.ndarray, start: np.ndarray) -> bool:
    return len(ids) > len(start) and np.array_equal(ids[: len(start)], start)


def _whole(length: int) -> int:
    return length // round_up(1) * round_up(1)
