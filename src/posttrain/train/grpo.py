"""Group-relative policy optimization with verifiable rewards: one page, and the pieces it names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.pack import pick
from posttrain.records import Problem
from posttrain.rollout.ahead import Ahead
from posttrain.rollout.collect import Reward
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.credit import Credited, credit, rollout_metrics
from posttrain.train.metrics import MetricsLog
from posttrain.train.moving_reference import MovingReference
from posttrain.train.objective import policy_loss
from posttrain.train.rollouts import Rollouts, pack, sample_step, step_times, unpack, write_step
from posttrain.train.schedule import learning_rate
from posttrain.train.supply import Supply
from posttrain.train.updates import UpdateMetrics, check_gap, updates

if TYPE_CHECKING:
    from posttrain.config.grpo import GRPO
    from posttrain.data.render import Renderer
    from posttrain.rollout.sampler import Sampler
    from posttrain.runtime.learner import Learner, Scorer
    from posttrain.train.measurements import Measurements
    from posttrain.train.progress import Track

_NO_SIGNAL = "no group of a step had any signal, so nothing was learned from it"
_NONE_STOPPED = "no completion of a step stopped by itself, so nothing was learned from it"


def update(
    learner: Learner, credited: Credited, cfg: GRPO, *, step: int, seed: int, max_tokens: int
) -> dict[str, float]:
    """All optimizer updates of one rollout step; returns their metrics."""
    found = UpdateMetrics()
    for chosen, groups in updates(credited.rows, cfg, step=step, seed=seed, max_tokens=max_tokens):
        loss_fn = partial(
            policy_loss,
            cfg=cfg,
            num_tokens=sum(sum(credited.rows[i].mask) for i in chosen),
            num_rows=len(chosen),
            num_micro_batches=len(groups),
        )
        for group in groups:
            found.add(learner.forward_backward(pick(credited.rows, group, credited.columns), loss_fn))
        rate = learning_rate(
            step * cfg.updates_per_step + found.count,
            num_steps=cfg.num_updates,
            peak=cfg.learning_rate,
            schedule=cfg.schedule,
            warmup_steps=int(cfg.warmup_fraction * cfg.num_updates),
        )
        found.finish(learner.optim_step(learning_rate=rate, max_grad_norm=cfg.max_grad_norm))
    return found.means()


def sample(
    step: int, *, supply: Supply, sampler: Sampler, renderer: Renderer, cfg: GRPO, seed: int
) -> Rollouts:
    """Rollouts of step `step` (from 0) from what the supply gives; it retires what they solved."""
    sampled = sample_step(
        step,
        sampler=sampler,
        renderer=renderer,
        problems=supply.problems,
        order=supply,
        cfg=cfg,
        seed=seed,
        reward=Reward(cfg.reward_scale, cfg.score_before_statistics),
        rounds=cfg.sampling_rounds,
    )
    supply.note(sampled.groups)
    return replace(sampled, num_retired=supply.num_retired)


def learn(
    sampled: Rollouts,
    cfg: GRPO,
    *,
    learner: Learner,
    reference: Scorer | None,
    step: int,
    seed: int,
    max_tokens: int,
) -> tuple[Credited | None, dict[str, float]]:
    """Credit what step `step` (from 0) sampled and update on it; None when no group had any signal."""
    if not sampled.trained:
        return None, {}
    groups = [sampled.groups[place] for place in sampled.trained]
    credited = credit(groups, cfg, learner=learner, reference=reference, max_tokens=max_tokens)
    metrics = dict(credited.metrics)
    if credited.rows:
        metrics |= update(learner, credited, cfg, step=step, seed=seed, max_tokens=max_tokens)
        check_gap(metrics, cfg, step)
    return credited, metrics


def train_grpo(
    learner: Learner,
    sampler: Sampler,
    reference: Scorer | None,
    renderer: Renderer,
    problems: Sequence[Problem],
    cfg: GRPO,
    *,
    seed: int,
    max_tokens: int,
    rollouts: Path,
    log: MetricsLog,
    checkpoints: Checkpoints,
    track: Track,
    measurements: Measurements | None = None,
) -> None:
    """Sample, verify, credit, learn, publish, for `cfg.num_steps` steps, from the last checkpoint if any."""
    supply = Supply(problems, seed, retire_at=cfg.no_resampling_pass_rate)
    step, pending = 0, None
    if (found := checkpoints.load()) is not None:
        step, state = found
        pending = _restore(state, learner, supply, reference)
    log.truncate_after(step)
    track.advance(step)
    ahead = Ahead(
        depth=cfg.generate_ahead,
        num_steps=cfg.num_steps,
        publish=lambda: sampler.load(learner.weights(), version=step),
        rest=sampler.unload,
        sample=partial(sample, supply=supply, sampler=sampler, renderer=renderer, cfg=cfg, seed=seed),
        pending=pending,
    )
    with closing(ahead):
        while step < cfg.num_steps:
            started = time.perf_counter()
            sampled = ahead.take(step)
            trained_at = time.perf_counter()
            metrics = rollout_metrics(sampled.groups, step=step, std_ddof=cfg.std_ddof)
            credited, learned = learn(
                sampled,
                cfg,
                learner=learner,
                reference=reference,
                step=step,
                seed=seed,
                max_tokens=max_tokens,
            )
            if credited is None or not credited.rows:
                track.progress.warn(_NO_SIGNAL if credited is None else _NONE_STOPPED)
            write_step(rollouts, sampled, credited, step + 1)
            step += 1
            if isinstance(reference, MovingReference):
                reference.follow(learner.weights(), step=step)
            metrics |= learned | sampled.metrics | step_times(started, sampled.seconds, trained_at)
            log.write(step, metrics)
            track.advance(1, tokens=sampled.num_tokens, metrics={"reward": metrics["reward/mean"]})
            if measurements is not None:
                measurements.take_if_due(step, learner, when_idle=ahead.pending)
            checkpoints.save_if_due(step, lambda: _state(learner, supply, reference, ahead))


def _state(
    learner: Learner, supply: Supply, reference: Scorer | None, ahead: Ahead[Rollouts]
) -> dict[str, Any]:
    pending = ahead.pending()  # first: a thread that still samples also moves `supply`
    state = {"learner": learner.state_dict(), "order": supply.state_dict(), "pending": pack(pending)}
    if isinstance(reference, MovingReference):
        state["reference"] = reference.state_dict()
    return state


def _restore(
    state: dict[str, Any], learner: Learner, supply: Supply, reference: Scorer | None
) -> Rollouts | None:
    learner.load_state_dict(state["learner"])
    supply.load_state_dict(state["order"])
    if isinstance(reference, MovingReference):
        reference.load_state_dict(state["reference"])
    return unpack(state["pending"])
