"""The generating copy of the policy, as the loops see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from posttrain.records import Completion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; log-probabilities are those at this temperature."""

    temperature: float = 1.0
    max_new_tokens: int = 256
    top_p: float = 1.0
    """Nucleus mass kept; below 1 the recorded log-probabilities are those of the renormalised nucleus."""
    top_k: int = 0
    """Most likely tokens kept; 0 keeps all."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion when they appear in it; kept in `ids`, cut from `text`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the seeds of its samples; sample i uses only seeds[i], whoever shares its batch."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    """One 63-bit seed per sample wanted; their number is the group's size."""


class Sampler(Protocol):
    """Prompts in, completions out, from weights that only `load` changes."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """For each request, in order, one completion per seed, in order."""
        ...

    def load(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        """Copy `weights` (Hugging Face names) in; later completions carry `version`."""
        ...

    def unload(self) -> None:
        """Give the weights' memory back, to whoever learns; `load` comes before the next request."""
        ...
