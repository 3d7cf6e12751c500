"""From verified groups to training rows: who gets which advantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from posttrain.algo.advantage import ADVANTAGES, reward_metrics, zero_signal_groups
from posttrain.algo.kl import kl_penalised_rewards
from posttrain.data.pack import collate, micro_batches
from posttrain.records import Group, Rollout, Row

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.config.stages import GRPO
    from posttrain.runtime.learner import Scorer


@dataclass(frozen=True, slots=True)
class Credited:
    """The rows of one rollout step with their per-token columns, ready for the loss."""

    rows: list[Row]
    columns: dict[str, list[list[float]]]
    """By `Batch` field: one list per row, as long as the row."""
    advantages: list[list[float]]
    """(P, G)."""


def completion_row(rollout: Rollout, id: str) -> Row:
    """Prompt and completion as they were sampled, never decoded in between; the completion is the target."""
    prompt, completion = rollout.prompt_ids, rollout.completion.ids
    return Row(id, prompt + completion, (False,) * len(prompt) + (True,) * len(completion))


def rewards_of(groups: Sequence[Group]) -> Tensor:
    """(P, G) float64 rewards."""
    return torch.tensor([[r.reward for r in group.rollouts] for group in groups], dtype=torch.float64)


def silent(groups: Sequence[Group]) -> list[bool]:
    """For each group, whether all its rewards are equal, so that they teach nothing."""
    found: list[bool] = zero_signal_groups(rewards_of(groups)).tolist()
    return found


def rollout_metrics(groups: Sequence[Group], *, step: int, std_ddof: int) -> dict[str, float]:
    """What step `step` (from 0) sampled and how it was judged; means over groups or completions."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    count = len(rollouts)
    lengths = [len(r.completion.ids) for r in rollouts]
    found = reward_metrics(rewards_of(groups), num_groups=len(groups), std_ddof=std_ddof)
    return {
        **{name: float(value) for name, value in found.items()},
        "rollout/staleness_steps": step - min(r.completion.weights_version for r in rollouts),
        "verifier/mean_value": sum(r.score.value for r in rollouts) / count,
        "verifier/error_rate": sum(r.score.verdict == "error" for r in rollouts) / count,
        "completions/mean_length_tokens": sum(lengths) / count,
        "completions/max_length_tokens": max(lengths),
        "completions/stop_rate": sum(r.completion.stop_reason == "stop" for r in rollouts) / count,
    }


def score_rows(scorer: Scorer, rows: Sequence[Row], *, max_tokens: int) -> list[list[float]]:
    """Per-token log-probabilities (nats) of every row, in the rows' order."""
    found: list[list[float]] = [[] for _ in rows]
    for group in micro_batches([len(row.ids) for row in rows], max_tokens):
        batch = collate([rows[i] for i in group])
        for index, values in zip(group, scorer.logprobs(batch).split(batch.lengths), strict=True):
            found[index] = values.tolist()
    return found


def credit(
    groups: Sequence[Group],
    cfg: GRPO,
    *,
    learner: Scorer,
    reference: Scorer | None,
    max_tokens: int,
) -> Credited:
    """Rows of `groups` in order with sampled, old and reference log-probabilities and advantages.

    `old` are the sampler's own, or the learner's when the recipe says so. Advantages are taken over whole
    groups, after any KL penalty went into the reward.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows = [completion_row(rollout, str(i)) for i, rollout in enumerate(rollouts)]
    sampled = [[0.0] * len(r.prompt_ids) + list(r.completion.logprobs) for r in rollouts]
    columns = {"sampled_logprobs": sampled}
    columns["old_logprobs"] = (
        sampled if cfg.old_logprobs == "sampler" else score_rows(learner, rows, max_tokens=max_tokens)
    )
    if reference is not None:
        columns["reference_logprobs"] = score_rows(reference, rows, max_tokens=max_tokens)
    rewards = rewards_of(groups)
    if reference is not None and cfg.kl_in == "reward":
        rewards = _penalised(rows, columns, rewards, cfg)
    advantages = ADVANTAGES[cfg.advantage](rewards, std_ddof=cfg.std_ddof)
    columns["advantages"] = [
        [value] * len(row.ids) for row, value in zip(rows, advantages.flatten().tolist(), strict=True)
    ]
    return Credited(rows, columns, advantages.tolist())


def _penalised(rows: list[Row], columns: dict[str, list[list[float]]], rewards: Tensor, cfg: GRPO) -> Tensor:
    """(P, G) rewards less the completion's summed KL penalty."""
    batch = collate(
        rows, old_logprobs=columns["old_logprobs"], reference_logprobs=columns["reference_logprobs"]
    )
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    per_token = kl_penalised_rewards(
        batch.old_logprobs,
        batch.reference_logprobs,
        batch.mask,
        rewards.flatten().float(),
        batch.row_index(),
        coefficient=cfg.kl_coefficient,
        estimator=cfg.kl_estimator,
    )
    return batch.sum_rows(per_token).double().view_as(rewards)
