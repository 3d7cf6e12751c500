"""Where two greedy outputs of one prompt part, and how near a tie that was: evidence that rounding parted them.

Both continue the same tokens, so up to there the same function was computed, its bfloat16 sums in another order. In
float32 the two tokens' logits must then lie no further apart than bfloat16 moves such differences.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first place where both have a token and not the same; None when one begins with the other."""
    pairs = zip(ours, theirs, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), None)


@dataclass(frozen=True, slots=True)
class Parting:
    """Two outputs that part; logits are those of the plain transformers model."""

    position: int
    """Tokens that both wrote before."""
    ours: int
    theirs: int
    """The ids that follow."""
    gap: float
    """The float32 logit of our token less that of theirs."""
    are_top_two: bool
    """Whether no third token has a higher float32 logit than either."""
    step: float
    """The distance between neighbouring bfloat16 numbers at the higher logit."""
    gaps: tuple[float, ...]
    """How far apart the two top logits are in float32, at every token of our output."""
    moves: tuple[float, ...]
    """How far bfloat16 moves that difference."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """What bfloat16 does to the two top logits over all the outputs that part."""

    tokens: int
    largest_move: float
    median_move: float
    median_gap: float

    @classmethod
    def of(cls, partings: Iterable[Parting]) -> Rounding | None:
        """Over every token of `partings`; None without any."""
        found = list(partings)
        moves = [move for parting in found for move in parting.moves]
        gaps = [gap for parting in found for gap in parting.gaps]
        return cls(len(moves), max(moves), median(moves), median(gaps)) if moves else None

    def explains(self, parting: Parting) -> bool:
        """Whether the tie was so near that rounding decides it."""
        return parting.are_top_two and abs(parting.gap) <= self.largest_move


class Logits:
    """The plain transformers model in float32 and in bfloat16, with the prompts' common beginning run once."""

    def __init__(self, folder: Path, prefix: Sequence[int]) -> None:
        from transformers import AutoModelForCausalLM

        self._prefix = list(prefix)
        self._models: dict[torch.dtype, tuple[Any, Any]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
            with torch.inference_mode():
                cache = model(torch.tensor([self._prefix]), logits_to_keep=1).past_key_values
            self._models[dtype] = model, cache

    def after(self, prompt: Sequence[int], written: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(len(written) + 1, V) float32: what follows the prompt, and what follows each written token."""
        assert list(prompt[: len(self._prefix)]) == self._prefix
        model, cache = self._models[dtype]
        rest = [*prompt[len(self._prefix) :], *written]
        with torch.inference_mode():
            out = model(
                torch.tensor([rest]), past_key_values=copy.deepcopy(cache), logits_to_keep=len(written) + 1
            )
        found: Tensor = out.logits[0].float()
        return found


def part(logits: Logits, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int]) -> Parting | None:
    """Where `ours` and `theirs`, which follow `prompt`, part; None when they do not."""
    position = first_difference(ours, theirs)
    if position is None:
        return None
    exact = logits.after(prompt, ours, torch.float32)
    rounded = logits.after(prompt, ours, torch.bfloat16)
    top = exact.topk(2).indices
    gaps, moved = exact.gather(1, top).diff()[:, 0], rounded.gather(1, top).diff()[:, 0]
    here, pair = exact[position], [ours[position], theirs[position]]
    highest = here[pair].max().bfloat16()
    return Parting(
        position=position,
        ours=pair[0],
        theirs=pair[1],
        gap=float(here[pair[0]] - here[pair[1]]),
        are_top_two=set(top[position].tolist()) == set(pair),
        step=float(highest.abs().nextafter(torch.tensor(torch.inf).bfloat16()) - highest.abs()),
        gaps=tuple(gaps.abs().tolist()),
        moves=tuple((moved - gaps).abs().tolist()),
    )


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all `rows` begin with, less one token where a row would have no other."""
    shortest = min(map(len, rows)) - 1
    same = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    return list(rows[0][:same])
