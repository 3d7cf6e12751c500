"""The values that travel through the pipeline. All are frozen; every stage makes new ones.

Legend for shapes: N tokens of a batch laid end to end, R rows (sequences) in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Verdict = Literal["correct", "wrong", "unparseable", "error"]
StopReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to imitate: at least one assistant turn."""

    id: str
    messages: tuple[Message, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """Two conversations that share their prompt; the last turn of `chosen` is the better one."""

    id: str
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt whose answer a verifier can check. `ground_truth` is whatever that verifier reads."""

    id: str
    messages: tuple[Message, ...]
    ground_truth: Any
    verifier: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler produced, with the log-probabilities (nats) it sampled with.

    `ids` includes the stop token when `stop_reason` is "stop" because of one. `text` is the decoded
    reply without special tokens. `weights_version` counts the weight loads the sampler had seen.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason
    text: str
    weights_version: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """A verifier's judgement: `value` in [0, 1], a verdict, the value of each part, and a sentence why."""

    value: float
    verdict: Verdict
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one problem, verified."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completion: Completion
    score: Score
    reward: float


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one problem in one step; their mean reward is the baseline."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised training sequence: `mask` is True where the token is a target of the loss."""

    id: str
    ids: tuple[int, ...]
    mask: tuple[bool, ...]


Pair = tuple[Row, Row]
"""A preference as rows: chosen, rejected."""


@dataclass(frozen=True, slots=True)
class Batch:
    """R sequences laid end to end (no padding). `mask[t]` is True where `ids[t]` is a target.

    Per-token columns are (N,) and zero where they say nothing; per-row columns are (R,).
    """

    ids: Tensor
    """(N,) int64."""
    positions: Tensor
    """(N,) int64, restarting at 0 in each row."""
    mask: Tensor
    """(N,) bool; never True at a row's first token, which nothing predicts."""
    lengths: tuple[int, ...]
    """R row lengths in tokens; they sum to N."""
    row_ids: tuple[str, ...]
    """R ids, those of the data."""
    advantages: Tensor | None = None
    """(N,) float32."""
    sampled_logprobs: Tensor | None = None
    """(N,) float32 nats: as the sampler recorded them, at the sampling temperature."""
    old_logprobs: Tensor | None = None
    """(N,) float32 nats: the learner's own before the first update of the step."""
    reference_logprobs: Tensor | None = None
    """(N,) float32 nats: the frozen reference policy's."""
    old_values: Tensor | None = None
    """(N,) float32: the value model's before the first update of the step, of the state before each token."""
    returns: Tensor | None = None
    """(N,) float32: what the value model should have said (PPO)."""
    reference_sums: Tensor | None = None
    """(R,) float32 nats: the reference policy's sum over the row's targets (DPO)."""

    @property
    def num_targets(self) -> int:
        """Targets of the loss in this batch, in tokens."""
        return int(self.mask.sum())

    def row_index(self) -> Tensor:
        """(N,) int64: the row each token belongs to."""
        import torch

        lengths = torch.tensor(self.lengths, device=self.ids.device)
        rows = torch.arange(len(self.lengths), device=self.ids.device)
        # its size is said beforehand, because counting it would wait for a GPU
        return torch.repeat_interleave(rows, lengths, output_size=len(self.ids))

    def sum_rows(self, values: Tensor) -> Tensor:
        """(R,): per-row sum of the per-token `values` (N,) over the row's targets."""
        import torch

        kept = torch.where(self.mask, values, torch.zeros_like(values))
        return kept.new_zeros(len(self.lengths)).index_add(0, self.row_index(), kept)

    def count_rows(self) -> Tensor:
        """(R,) float32: targets of each row, in tokens."""
        import torch

        return self.sum_rows(torch.ones_like(self.ids, dtype=torch.float32))


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that could not be used, by reason; counted, logged and shown in the report."""

    counts: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[str] = ()
