"""One token for every running sample: plainly, or over buffers that stay, which a GPU replays as one graph.

A step of a small model is hundreds of short kernels, and starting them one by one takes a GPU's host longer than
they run. CUDA graphs start them together, but only over memory that stays where it is and sizes that are known
beforehand: so rows and keys are rounded up to a few sizes, and the cache is as large at once as it may become.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posttrain.model.decoder import Angles, Shape
from posttrain.model.native.newest import Lines, Trunk
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.forward import decode
from posttrain.rollout.engine.weights import EngineWeights

_WINDOW = 128
"""Keys attended to are a multiple of this."""
_PLAIN_TURNS = 2
"""How often a size runs before it is recorded: most sizes on the way up come once; and libraries warm up."""


def can_record(device: torch.device) -> bool:
    """Whether steps on `device` can be CUDA graphs; POSTTRAIN_GRAPHS=0 says no."""
    wanted = os.environ.get("POSTTRAIN_GRAPHS", "1") != "0"
    return device.type == "cuda" and torch.cuda.is_available() and wanted


class Steps(Protocol):
    """What the engine asks for: room in the cache, then steps over it."""

    def load(self, weights: EngineWeights | None) -> None:
        """Decode with `weights` from now on; None drops those there are."""
        ...

    def reserve(self, rows: int, length: int, *, longest: int, most_rows: Callable[[], int]) -> None:
        """Room for `rows` samples of `length` tokens, `longest` at their limits; they may become `most_rows()`."""
        ...

    def __call__(
        self,
        ids: Sequence[int],
        lengths: Sequence[int],
        trunks: Sequence[Trunk | None],
        *,
        alone: bool = False,
    ) -> Tensor:
        """(A, V) logits after each sample's newest token; read them before the next step.

        ids are those tokens, lengths (A,) count each sample's tokens with it; sample a begins with trunks[a] and goes
        on in slot a. `alone`: they are tokens of one sample, one after the other, in slot 0 of a blocked cache.
        """
        ...

    def rest(self) -> None:
        """No sample is running: give memory back."""
        ...


class PlainSteps:
    """`Steps` that take what they are given as it comes, and a cache that grows with it."""

    def __init__(self, shape: Shape, angles: Angles, cache: Cache, device: torch.device) -> None:
        self._shape, self._angles, self._cache, self._device = shape, angles, cache, device
        self._weights: EngineWeights | None = None

    def load(self, weights: EngineWeights | None) -> None:
        """Decode with `weights` from now on; None drops those there are."""
        self._weights = weights

    def reserve(self, rows: int, length: int, *, longest: int, most_rows: Callable[[], int]) -> None:
        """As much room as is needed now, and some to grow."""
        self._cache.reserve(rows, length, at_most=longest)

    def __call__(
        self,
        ids: Sequence[int],
        lengths: Sequence[int],
        trunks: Sequence[Trunk | None],
        *,
        alone: bool = False,
    ) -> Tensor:
        """(A, V) logits."""
        assert self._weights is not None
        newest, counts = torch.tensor([ids, lengths], device=self._device)
        slots = [0] * len(ids) if alone else range(len(ids))
        lines = Lines(trunks, slots, lengths) if self._cache.is_blocked else None
        model = self._weights, self._shape, self._angles
        return decode(*model, newest, counts, self._cache, longest=max(lengths), lines=lines)

    def rest(self) -> None:
        """Give the cache's memory back."""
        self._cache.clear()


@dataclass(slots=True)
class _Size:
    """The buffers of steps of R rows that attend to K keys."""

    inputs: Tensor
    """(2, R) int64: newest tokens, and lengths."""
    logits: Tensor
    """(R, V)."""
    keys: int
    turns: int = 0
    graph: torch.cuda.CUDAGraph | None = None


class SteadySteps:
    """`Steps` over buffers that stay: recorded and replayed where the device can, else run as they would be recorded.

    Rows beyond those that are asked for are samples of one token, in slots that nobody has.
    """

    def __init__(self, shape: Shape, angles: Angles, cache: Cache, device: torch.device) -> None:
        self._shape, self._angles, self._cache, self._device = shape, angles, cache, device
        self._weights: EngineWeights | None = None
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._stream = torch.cuda.Stream(device) if can_record(device) else None

    def load(self, weights: EngineWeights | None) -> None:
        """Decode with `weights` from now on, None drops those there are; graphs read the old ones, so they go."""
        self._weights = weights
        self._sizes.clear()

    def reserve(self, rows: int, length: int, *, longest: int, most_rows: Callable[[], int]) -> None:
        """All the room there may be, the first time that what there is does not do."""
        if rows > self._cache.slots or longest > self._cache.length:
            self._sizes.clear()
            self._cache.reserve(most_rows(), longest, at_most=longest)

    def __call__(
        self,
        ids: Sequence[int],
        lengths: Sequence[int],
        trunks: Sequence[Trunk | None],
        *,
        alone: bool = False,
    ) -> Tensor:
        """(A, V) logits, in a buffer that the next step writes to."""
        assert not alone and not any(trunks), "only blocked caches have trunks and several tokens of a sample"
        rows = min(padded_rows(len(ids)), self._cache.slots)
        keys = min(-(-max(lengths) // _WINDOW) * _WINDOW, self._cache.length)
        size = self._sizes.get((rows, keys)) or self._new(rows, keys)
        empty = rows - len(ids)
        size.inputs.copy_(torch.tensor([[*ids, *[0] * empty], [*lengths, *[1] * empty]]))
        self._turn(size)
        return size.logits[: len(ids)]

    def rest(self) -> None:
        """Give the cache's memory back, and the graphs, which read it where it was."""
        self._sizes.clear()
        self._cache.clear()

    def _new(self, rows: int, keys: int) -> _Size:
        assert self._weights is not None
        inputs = torch.empty(2, rows, dtype=torch.int64, device=self._device)
        logits = torch.empty(
            rows, self._shape.vocab, dtype=self._weights.embedding.dtype, device=self._device
        )
        return self._sizes.setdefault((rows, keys), _Size(inputs, logits, keys))

    def _decode(self, size: _Size) -> None:
        assert self._weights is not None
        ids, lengths = size.inputs
        model = self._weights, self._shape, self._angles
        size.logits.copy_(decode(*model, ids, lengths, self._cache, longest=size.keys))

    def _turn(self, size: _Size) -> None:
        size.turns += 1
        if self._stream is None:
            self._decode(size)
        elif size.turns <= _PLAIN_TURNS:
            self._aside(size)
        else:
            size.graph = size.graph or self._record(size)
            size.graph.replay()

    def _aside(self, size: _Size) -> None:
        # on the stream that records: libraries keep their workspaces by stream
        assert self._stream is not None
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._decode(size)
        current.wait_stream(self._stream)

    def _record(self, size: _Size) -> torch.cuda.CUDAGraph:
        # graphs share memory for what lies between: they never run at the same time
        pool = next((other.graph.pool() for other in self._sizes.values() if other.graph is not None), None)
        graph = torch.cuda.CUDAGraph()
        # another thread may train on this GPU meanwhile: its allocations are no mistake of ours
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            self._decode(size)
        return graph


def padded_rows(rows: int) -> int:
    """`rows` rounded up to a size that is kept: a power of two up to 32, from there a multiple of 32."""
    return 1 << (rows - 1).bit_length() if rows <= 32 else -(-rows // 32) * 32
