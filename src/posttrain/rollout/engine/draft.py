"""Tokens guessed ahead for a sample that runs alone, by a copy of the model with 8-bit matrices.

One row at a time is as fast as memory brings the weights. So a copy of half the size draws the next few tokens, by the
very noise that will draw the real ones, and the model then takes all of them in one pass. What is kept is
what it draws itself, so the result is that of plain decoding to the bit (speculative decoding, arXiv:2211.17192, with
common random numbers in place of its acceptance rule).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from posttrain.model.decoder import Angles, Shape
from posttrain.model.native.draft import Copy, Layer, Matrix
from posttrain.model.native.newest import Trunk
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.weights import EngineWeights

MOST = 7
"""Guesses at once: with the newest token they make eight rows."""
_COST = 0.25
"""Time of a guess, in steps that check."""
_MEMORY = 0.97
"""Of what is known about how often guesses are right, the part that outlives a check."""
_WORTH = 32
"""Steps that a sample has run alone before the copy is made, which takes as long as a few."""


class Drafts:
    """Guesses for the sample in slot 0 of `cache` while it is the only one."""

    def __init__(self, weights: EngineWeights, shape: Shape, angles: Angles, cache: Cache) -> None:
        self._weights, self._shape, self._angles, self._cache = weights, shape, angles, cache
        self._steps_alone = 0
        self._copy: Copy | None = None
        self._right, self._tried = 7.0, 10.0

    @staticmethod
    def fits(config: Any, cache: Cache) -> bool:
        """Whether the kernels take such a model: see `Copy.fits`; and its cache lies as they need it."""
        return cache.is_blocked and Copy.fits(int(config.hidden_size), int(config.intermediate_size))

    def guess(
        self, newest: int, length: int, trunk: Trunk | None, noise: np.ndarray, temperature: float
    ) -> list[int]:
        """Tokens that may follow `newest`, at most one for each of `noise` (int64), which will draw them.

        `length` counts the sample's tokens with `newest`, those of `trunk` too; the cache has room for the guesses,
        and what it holds of the sample from `newest` on is overwritten.
        """
        self._steps_alone += 1
        count = min(len(noise), worthwhile(self._right / self._tried))
        if self._steps_alone <= _WORTH or not count:
            return []
        self._copy = self._copy or _copied(self._weights, self._shape)
        angles = self._angles.at(torch.arange(length - 1, length - 1 + count), self._cache.dtype)
        room = self._cache.keys, self._cache.values
        return self._copy.draw(newest, length, noise[:count], temperature, angles, *room, trunk)

    def learn(self, guessed: int, right: int) -> None:
        """The first `right` of `guessed` tokens were drawn; the one after them, if there is one, was not."""
        self._right = _MEMORY * self._right + right
        self._tried = _MEMORY * self._tried + min(right + 1, guessed)


def worthwhile(right: float) -> int:
    """How many guesses at once bring most tokens for their time, if each is right with this probability.

    g of them bring 1 + right + ... + right^g tokens (arXiv:2211.17192 eq. 1).
    """
    tokens = np.cumsum(right ** np.arange(MOST + 1))
    return 1 + int(np.argmax(tokens[1:] / (1 + _COST * np.arange(1, MOST + 1))))


def _copied(weights: EngineWeights, shape: Shape) -> Copy:
    layers = [
        Layer(
            qkv=Matrix.of(layer.qkv.plain()),
            out=Matrix.of(layer.out.plain()),
            gate_up=Matrix.of(layer.gate_up.plain(), gated=True),
            down=Matrix.of(layer.down.plain()),
            norms=layer.norms,
        )
        for layer in weights.layers
    ]
    return Copy(
        layers,
        Matrix.of(weights.head.plain()),
        weights.norm,
        weights.embedding,
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        eps=shape.norm_eps,
    )
