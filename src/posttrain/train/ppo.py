"""Proximal policy optimization with a value model and verifiable rewards: one page, and the pieces it names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.algo.masked import micro_batch_denominator
from posttrain.algo.policy import clipped_policy_loss
from posttrain.algo.value import clipped_value_loss, state_values
from posttrain.data.loader import Loader
from posttrain.data.pack import pick
from posttrain.records import Batch, Problem
from posttrain.rollout.ahead import Ahead
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.credit import Credited, completion_metrics
from posttrain.train.metrics import MetricsLog
from posttrain.train.ppo_credit import credit_tokens
from posttrain.train.rollouts import Judge, Rollouts, pack, sample_step, step_times, unpack, write_step
from posttrain.train.schedule import learning_rate
from posttrain.train.updates import UpdateMetrics, check_gap, gap_metrics, updates

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.config.ppo import PPO
    from posttrain.data.render import Renderer
    from posttrain.rollout.sampler import Sampler
    from posttrain.runtime.learner import Learner, Scorer
    from posttrain.runtime.value import ScoreLearner
    from posttrain.train.measurements import Measurements
    from posttrain.train.progress import Track


def _denominator(batch: Batch, cfg: PPO, num_tokens: int, num_micro_batches: int) -> float:
    if cfg.loss_denominator == "step_tokens":
        return float(num_tokens)
    return micro_batch_denominator(batch.mask, num_micro_batches=num_micro_batches)


def policy_loss(
    logprobs: Tensor, batch: Batch, *, cfg: PPO, num_tokens: int, num_micro_batches: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate for one micro-batch of an update."""
    assert batch.advantages is not None and batch.old_logprobs is not None
    loss, metrics = clipped_policy_loss(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.mask,
        clip_low=cfg.clip,
        clip_high=cfg.clip,
        num_tokens=num_tokens,
        denominator=_denominator(batch, cfg, num_tokens, num_micro_batches),
    )
    return loss, metrics | gap_metrics(logprobs, batch, num_tokens=num_tokens)


def value_loss(
    scores: Tensor, batch: Batch, *, cfg: PPO, num_tokens: int, num_micro_batches: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped squared error, times its coefficient, for one micro-batch of an update."""
    assert batch.old_values is not None and batch.returns is not None
    loss, metrics = clipped_value_loss(
        state_values(scores, batch.mask),
        batch.old_values,
        batch.returns,
        batch.mask,
        clip=cfg.value_clip,
        num_tokens=num_tokens,
        denominator=_denominator(batch, cfg, num_tokens, num_micro_batches),
    )
    return cfg.value_coefficient * loss, metrics


def update(
    policy: Learner,
    value: ScoreLearner,
    credited: Credited,
    cfg: PPO,
    *,
    step: int,
    seed: int,
    max_tokens: int,
) -> dict[str, float]:
    """All optimizer updates of one rollout step, of both models on the same rows; returns their metrics."""
    found = UpdateMetrics()
    rate = partial(
        learning_rate,
        num_steps=cfg.num_updates,
        schedule=cfg.schedule,
        warmup_steps=int(cfg.warmup_fraction * cfg.num_updates),
    )
    value_peak = cfg.learning_rate if cfg.value_learning_rate is None else cfg.value_learning_rate
    for chosen, groups in updates(credited.rows, cfg, step=step, seed=seed, max_tokens=max_tokens):
        num_tokens = sum(sum(credited.rows[i].mask) for i in chosen)
        sizes: dict[str, Any] = {"cfg": cfg, "num_tokens": num_tokens, "num_micro_batches": len(groups)}
        for group in groups:
            batch = pick(credited.rows, group, credited.columns)
            found.add(value.forward_backward(batch, partial(value_loss, **sizes)))
            found.add(policy.forward_backward(batch, partial(policy_loss, **sizes)))
        at = step * cfg.updates_per_step + found.count
        moved = value.optim_step(learning_rate=rate(at, peak=value_peak), max_grad_norm=cfg.max_grad_norm)
        found.add({name.replace("optim/", "value/"): number for name, number in moved.items()})
        found.finish(
            policy.optim_step(learning_rate=rate(at, peak=cfg.learning_rate), max_grad_norm=cfg.max_grad_norm)
        )
    return found.means()


def train_ppo(
    policy: Learner,
    value: ScoreLearner,
    sampler: Sampler,
    reference: Scorer | None,
    renderer: Renderer,
    problems: Sequence[Problem],
    cfg: PPO,
    *,
    judge: Judge | None,
    seed: int,
    max_tokens: int,
    rollouts: Path,
    log: MetricsLog,
    checkpoints: Checkpoints,
    track: Track,
    measurements: Measurements | None = None,
) -> None:
    """Sample, verify, credit, learn, publish, for `cfg.num_steps` steps, from the last checkpoint if any."""
    order = Loader(len(problems), 1, seed)
    step, pending = _restore(checkpoints, policy, value, order)
    log.truncate_after(step)
    track.advance(step)
    ahead = Ahead(
        depth=cfg.generate_ahead,
        num_steps=cfg.num_steps,
        publish=lambda: sampler.load(policy.weights(), version=step),
        rest=sampler.unload,
        sample=partial(
            sample_step,
            sampler=sampler,
            renderer=renderer,
            problems=problems,
            order=order,
            cfg=cfg,
            seed=seed,
            judge=judge,
        ),
        pending=pending,
    )
    with closing(ahead):
        while step < cfg.num_steps:
            started = time.perf_counter()
            sampled = ahead.take(step)
            trained_at = time.perf_counter()
            credited, metrics = credit_tokens(
                sampled.groups, cfg, learner=policy, value=value, reference=reference, max_tokens=max_tokens
            )
            metrics |= completion_metrics(sampled.groups, step=step)
            metrics |= update(policy, value, credited, cfg, step=step, seed=seed, max_tokens=max_tokens)
            check_gap(metrics, cfg, step)
            write_step(rollouts, sampled, credited, step + 1)
            step += 1
            metrics |= step_times(started, sampled.seconds, trained_at)
            log.write(step, metrics)
            track.advance(1, tokens=sampled.num_tokens, metrics={"reward": metrics["reward/mean"]})
            if measurements is not None:
                measurements.take_if_due(step, policy, when_idle=ahead.pending)
            checkpoints.save_if_due(step, lambda: _state(policy, value, order, ahead))


def _restore(
    checkpoints: Checkpoints, policy: Learner, value: ScoreLearner, order: Loader
) -> tuple[int, Rollouts | None]:
    """Steps done and rollouts begun, with all else put back as the last checkpoint has it."""
    if (found := checkpoints.load()) is None:
        return 0, None
    step, state = found
    policy.load_state_dict(state["learner"])
    value.load_state_dict(state["value"])
    order.load_state_dict(state["order"])
    return step, unpack(state["pending"])


def _state(policy: Learner, value: ScoreLearner, order: Loader, ahead: Ahead[Rollouts]) -> dict[str, Any]:
    pending = ahead.pending()  # first: a thread that still samples also moves `order`
    states = {"learner": policy.state_dict(), "value": value.state_dict()}
    return states | {"order": order.state_dict(), "pending": pack(pending)}
