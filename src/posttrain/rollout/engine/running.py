"""What runs in the engine: prompts, their samples, and the tokens that come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from posttrain.records import Completion
from posttrain.rollout.engine.draw import uniforms
from posttrain.rollout.engine.forward import Held
from posttrain.rollout.sampler import Request, Sampling


@dataclass(slots=True, eq=False)
class Prompt:
    """A request. Its prompt is run once; what that gave is kept until its last sample has started."""

    handle: int
    request: Request
    sampling: Sampling
    completions: list[Completion | None]
    next_sample: int = 0
    logits: Tensor | None = None
    """(V,) after the prompt's last token."""
    held: Held | None = None
    """The prompt's keys and values."""

    @property
    def longest(self) -> int:
        """Tokens of a sample that reaches its limit, prompt included."""
        return len(self.request.prompt_ids) + self.sampling.max_new_tokens


@dataclass(slots=True, eq=False)
class Sample:
    """One running sample. Its place in the engine's list is its slot in the cache."""

    prompt: Prompt
    index: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def seed(self) -> int:
        return self.prompt.request.seeds[self.index]

    @property
    def length(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.prompt.request.prompt_ids) + len(self.ids)


@dataclass(frozen=True, slots=True)
class Token:
    """One drawn token of a running request, for streaming; `completion` is set on the sample's last."""

    handle: int
    sample: int
    id: int
    completion: Completion | None


def uniforms_of(samples: Sequence[Sample], ahead: Sequence[int]) -> np.ndarray:
    """(A,) float32 in [0, 1]: what draws each sample's token that comes `ahead[a]` after its next."""
    seeds = np.array([sample.seed for sample in samples], np.uint64)
    indices = np.array([len(s.ids) + i for s, i in zip(samples, ahead, strict=True)], np.uint64)
    return uniforms(seeds, indices).astype(np.float32)
