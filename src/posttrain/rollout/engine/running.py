"""What runs in the engine: prompts, their samples, and the tokens that come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from posttrain.model.native.newest import Trunk
from posttrain.records import Completion
from posttrain.rollout.engine.draw import noise
from posttrain.rollout.engine.forward import Held
from posttrain.rollout.engine.starts import Start
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
    start: Start | None = None
    """What its samples share; chosen when it is admitted."""

    @property
    def depth(self) -> int:
        """Tokens of the start, which lie in no slot."""
        return 0 if self.start is None else self.start.depth

    @property
    def longest(self) -> int:
        """Tokens in the slot of a sample that reaches its limit, what follows the prompt's start included."""
        return len(self.request.prompt_ids) - self.depth + self.sampling.max_new_tokens


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

    @property
    def trunk(self) -> Trunk | None:
        """Where its first tokens lie."""
        return None if self.prompt.start is None else self.prompt.start.trunk

    @property
    def filled(self) -> int:
        """Tokens in its slot, when the newest is there."""
        return self.length - self.prompt.depth


@dataclass(frozen=True, slots=True)
class Token:
    """One drawn token of a running request, for streaming; `completion` is set on the sample's last."""

    handle: int
    sample: int
    id: int
    completion: Completion | None


def noise_of(samples: Sequence[Sample], ahead: Sequence[int]) -> np.ndarray:
    """(A,) int64: what draws each sample's token that comes `ahead[a]` after its next."""
    seeds = np.array([sample.seed for sample in samples], np.uint64)
    indices = np.array([len(s.ids) + i for s, i in zip(samples, ahead, strict=True)], np.uint64)
    return noise(seeds, indices)
