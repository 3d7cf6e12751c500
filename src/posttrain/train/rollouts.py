"""What one step of reinforcement learning samples: drawn, written down, kept in checkpoints."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.records import Group, Problem
from posttrain.rollout.collect import Reward, collect
from posttrain.rollout.sampler import Sampling
from posttrain.rollout.table import read_rollouts, write_rollouts
from posttrain.train.credit import Credited, silent
from posttrain.train.seeds import seed_of

if TYPE_CHECKING:
    from posttrain.config.grpo import GRPO
    from posttrain.config.ppo import PPO
    from posttrain.data.render import Renderer
    from posttrain.rollout.sampler import Sampler

Judge = Callable[[Sequence[Group], Reward], list[Group]]
"""Puts another opinion into the rewards of groups that a verifier has judged, under the same rule."""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What one step sampled: all groups, and the places of those to train on."""

    groups: list[Group]
    trained: list[int]
    seconds: float
    num_retired: int = 0
    """Problems that will not be sampled again for now."""

    @property
    def metrics(self) -> dict[str, float]:
        """How many groups it took, and how many are left to learn from."""
        return {
            "rollout/sampled_groups": len(self.groups),
            "rollout/trained_groups": len(self.trained),
            "rollout/retired_problems": self.num_retired,
        }

    @property
    def num_tokens(self) -> int:
        """Tokens sampled."""
        return sum(len(r.completion.ids) for group in self.groups for r in group.rollouts)


def sample_step(
    step: int,
    *,
    sampler: Sampler,
    renderer: Renderer,
    problems: Sequence[Problem],
    order: Iterator[list[int]],
    cfg: GRPO | PPO,
    seed: int,
    judge: Judge | None = None,
    reward: Reward | None = None,
    rounds: int = 1,
) -> Rollouts:
    """Rollouts for `cfg.prompts_per_step` problems, with groups without signal treated as the recipe says.

    In up to `rounds` rounds those are replaced; a step that still lacks some goes on with fewer. `reward`
    None is the recipe's scale and score for a missing stop.
    """
    started = time.perf_counter()
    reward = reward or Reward(cfg.reward_scale, cfg.no_stop_score)
    groups: list[Group] = []
    trained: list[int] = []
    for attempt in range(rounds):
        fresh = collect(
            sampler,
            renderer,
            [problems[next(order)[0]] for _ in range(cfg.prompts_per_step - len(trained))],
            samples_per_problem=cfg.samples_per_prompt,
            sampling=Sampling(temperature=cfg.temperature, max_new_tokens=cfg.max_new_tokens),
            reward=reward,
            seed=lambda place, sample: seed_of(seed, step, attempt, place, sample),  # noqa: B023
        )
        if judge is not None:
            fresh = judge(fresh, reward)
        quiet = [False] * len(fresh) if cfg.zero_signal == "keep" else silent(fresh)
        trained += [len(groups) + place for place, without in enumerate(quiet) if not without]
        groups += fresh
        if len(trained) >= cfg.prompts_per_step:
            break
    return Rollouts(groups, trained, time.perf_counter() - started)


def write_step(folder: Path, sampled: Rollouts, credited: Credited | None, step: int) -> None:
    """Write the rollouts of step `step` (from 1) as a table, with the advantages of those trained on."""
    advantages: list[list[float | None]] = [[None] * len(group.rollouts) for group in sampled.groups]
    if credited is not None:
        for place, values in zip(sampled.trained, credited.advantages, strict=True):
            advantages[place] = list(values)
    write_rollouts(folder / f"step_{step:06d}.parquet", sampled.groups, step=step, advantages=advantages)


def step_times(started: float, sampling: float, trained_at: float) -> dict[str, float]:
    """Seconds of a step that began at `started`, waited `sampling` seconds and trained from `trained_at` on."""
    now = time.perf_counter()
    return {
        "time/generate_seconds": sampling,
        "time/train_seconds": now - trained_at,
        "time/step_seconds": now - started,
    }


def pack(pending: Rollouts | None) -> dict[str, Any] | None:
    """Rollouts as values that a checkpoint holds."""
    if pending is None:
        return None
    table = io.BytesIO()
    write_rollouts(table, pending.groups, step=0)
    content = torch.frombuffer(bytearray(table.getvalue()), dtype=torch.uint8)
    rest = {"trained": pending.trained, "seconds": pending.seconds, "retired": pending.num_retired}
    return {"table": content, **rest}


def unpack(packed: dict[str, Any] | None) -> Rollouts | None:
    """What `pack` packed."""
    if packed is None:
        return None
    groups = read_rollouts(io.BytesIO(packed["table"].numpy().tobytes()))
    return Rollouts(groups, list(packed["trained"]), float(packed["seconds"]), int(packed["retired"]))
