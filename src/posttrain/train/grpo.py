"""Group-relative policy optimization with verifiable rewards: one page, and the pieces it names."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from posttrain.algo.kl import kl_loss
from posttrain.algo.masked import micro_batch_denominator
from posttrain.algo.policy import (
    clipped_policy_loss,
    max_difference,
    max_ratio_deviation,
    sampling_metrics,
    truncated_importance_weights,
)
from posttrain.data.loader import Loader
from posttrain.data.pack import micro_batches, pick
from posttrain.errors import TrainingError
from posttrain.records import Batch, Group, Problem
from posttrain.rollout.ahead import Ahead
from posttrain.rollout.collect import Reward, collect
from posttrain.rollout.sampler import Sampling
from posttrain.rollout.table import read_rollouts, write_rollouts
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.credit import Credited, credit, rollout_metrics, silent
from posttrain.train.metrics import MetricsLog, Totals
from posttrain.train.schedule import learning_rate
from posttrain.train.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.config.stages import GRPO
    from posttrain.data.render import Renderer
    from posttrain.rollout.sampler import Sampler
    from posttrain.runtime.learner import Learner, Scorer
    from posttrain.train.progress import Track

_REFILL_ROUNDS = 4
"""Times a step looks for replacements of groups without signal before it goes on with fewer."""
_MAXIMA = ("sampling/logprob_difference_max_nats", "policy/ratio_max_deviation")
_OF_FIRST_UPDATE = ("sampling/", "policy/ratio_max_deviation")


def policy_loss(
    logprobs: Tensor, batch: Batch, *, cfg: GRPO, num_tokens: int, num_rows: int, num_micro_batches: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate plus the KL term under the recipe's denominator, for one micro-batch of an update."""
    assert batch.advantages is not None and batch.old_logprobs is not None
    assert batch.sampled_logprobs is not None
    mask = batch.mask
    denominator = {
        "step_tokens": lambda: float(num_tokens),
        "micro_batch_mean": lambda: micro_batch_denominator(mask, num_micro_batches=num_micro_batches),
        "constant": lambda: float(num_rows * cfg.max_new_tokens),
    }[cfg.loss_denominator]()
    weights = None
    if cfg.importance_cap is not None:
        cap = cfg.importance_cap
        weights = truncated_importance_weights(batch.old_logprobs, batch.sampled_logprobs, mask, cap=cap)
    loss, metrics = clipped_policy_loss(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        mask,
        clip_low=cfg.clip_low,
        clip_high=cfg.clip_high,
        num_tokens=num_tokens,
        denominator=denominator,
        weights=weights,
    )
    if batch.reference_logprobs is not None:
        distance, kl_metrics = kl_loss(
            logprobs,
            batch.reference_logprobs,
            batch.old_logprobs,
            mask,
            estimator=cfg.kl_estimator,
            num_tokens=num_tokens,
            denominator=denominator,
        )
        metrics |= kl_metrics
        if cfg.kl_in == "loss":
            loss = loss + cfg.kl_coefficient * distance
    current = logprobs.detach()
    metrics |= sampling_metrics(
        current, batch.sampled_logprobs, mask, num_tokens=num_tokens, cap=cfg.importance_cap
    )
    metrics[_MAXIMA[0]] = max_difference(current, batch.sampled_logprobs, mask)
    metrics[_MAXIMA[1]] = max_ratio_deviation(current, batch.old_logprobs, mask)
    return loss, metrics


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What one step sampled: all groups, and the places of those to train on."""

    groups: list[Group]
    trained: list[int]
    seconds: float


def sample_step(
    step: int,
    *,
    sampler: Sampler,
    renderer: Renderer,
    problems: Sequence[Problem],
    order: Iterator[list[int]],
    cfg: GRPO,
    seed: int,
) -> Rollouts:
    """Rollouts for `cfg.prompts_per_step` problems, with groups without signal treated as the recipe says."""
    started = time.perf_counter()
    groups: list[Group] = []
    trained: list[int] = []
    for attempt in range(_REFILL_ROUNDS if cfg.zero_signal == "refill" else 1):
        fresh = collect(
            sampler,
            renderer,
            [problems[next(order)[0]] for _ in range(cfg.prompts_per_step - len(trained))],
            samples_per_problem=cfg.samples_per_prompt,
            sampling=Sampling(temperature=cfg.temperature, max_new_tokens=cfg.max_new_tokens),
            reward=Reward(cfg.reward_scale, cfg.no_stop_score),
            seed=lambda place, sample: seed_of(seed, step, attempt, place, sample),  # noqa: B023
        )
        keep = [cfg.zero_signal == "keep" or not quiet for quiet in silent(fresh)]
        trained += [len(groups) + place for place, kept in enumerate(keep) if kept]
        groups += fresh
        if len(trained) >= cfg.prompts_per_step:
            break
    return Rollouts(groups, trained, time.perf_counter() - started)


def update(
    learner: Learner, credited: Credited, cfg: GRPO, *, step: int, seed: int, max_tokens: int
) -> Totals:
    """All optimizer updates of one rollout step; metrics are means over them.

    The log-probability gap to the sampler and the ratio's deviation from 1 are those of the first update,
    before any weight of this step has changed.
    """
    totals, first = Totals(), Totals()
    count = 0
    for epoch in range(cfg.inner_epochs):
        order = np.random.Generator(np.random.PCG64([seed, step, epoch])).permutation(len(credited.rows))
        for part in np.array_split(order, min(cfg.mini_batches, len(order))):
            chosen = part.tolist()
            lengths = [len(credited.rows[i].ids) for i in chosen]
            groups = micro_batches(lengths, max_tokens, rows=cfg.rows_per_micro_batch)
            loss_fn = partial(
                policy_loss,
                cfg=cfg,
                num_tokens=sum(sum(credited.rows[i].mask) for i in chosen),
                num_rows=len(chosen),
                num_micro_batches=len(groups),
            )
            for group in groups:
                batch = pick(credited.rows, [chosen[i] for i in group], credited.columns)
                metrics = learner.forward_backward(batch, loss_fn)
                gap = {name: metrics.pop(name) for name in [*metrics] if name.startswith(_OF_FIRST_UPDATE)}
                totals.add(metrics)
                if count == 0:
                    largest = {name: max(first.get(name, 0.0), gap.pop(name)) for name in _MAXIMA}
                    first.add(gap)
                    first |= largest
            rate = learning_rate(
                step * cfg.updates_per_step + count,
                num_steps=cfg.num_updates,
                peak=cfg.learning_rate,
                schedule=cfg.schedule,
                warmup_steps=int(cfg.warmup_fraction * cfg.num_updates),
            )
            totals.add(learner.optim_step(learning_rate=rate, max_grad_norm=cfg.max_grad_norm))
            count += 1
    return Totals(totals.averages(count) | first)


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
) -> None:
    """Sample, verify, credit, learn, publish, for `cfg.num_steps` steps, from the last checkpoint if any."""
    order = Loader(len(problems), 1, seed)
    step, pending = 0, None
    if (found := checkpoints.load()) is not None:
        step, state = found
        learner.load_state_dict(state["learner"])
        order.load_state_dict(state["order"])
        pending = _unpack(state["pending"])
    log.truncate_after(step)
    track.advance(step)
    sample = partial(
        sample_step, sampler=sampler, renderer=renderer, problems=problems, order=order, cfg=cfg, seed=seed
    )
    ahead = Ahead(
        depth=cfg.generate_ahead,
        num_steps=cfg.num_steps,
        publish=lambda: sampler.load(learner.weights(), version=step),
        sample=sample,
        pending=pending,
    )
    try:
        while step < cfg.num_steps:
            started = time.perf_counter()
            sampled = ahead.take(step)
            metrics = rollout_metrics(sampled.groups, step=step, std_ddof=cfg.std_ddof)
            trained_at = time.perf_counter()
            credited = None
            if sampled.trained:
                groups = [sampled.groups[place] for place in sampled.trained]
                credited = credit(groups, cfg, learner=learner, reference=reference, max_tokens=max_tokens)
                metrics |= update(learner, credited, cfg, step=step, seed=seed, max_tokens=max_tokens)
                _check_gap(metrics, cfg, step)
            else:
                track.progress.warn("no group of a step had any signal, so nothing was learned from it")
            _write(rollouts / f"step_{step + 1:06d}.parquet", sampled, credited, step + 1)
            step += 1
            now = time.perf_counter()
            metrics |= {"time/generate_seconds": sampled.seconds, "time/train_seconds": now - trained_at}
            metrics["time/step_seconds"] = now - started
            log.write(step, metrics)
            tokens = sum(len(r.completion.ids) for g in sampled.groups for r in g.rollouts)
            track.advance(1, tokens=tokens, metrics={"reward": metrics["reward/mean"]})
            checkpoints.save_if_due(step, lambda: _state(learner, order, ahead))
    finally:
        ahead.close()


def _check_gap(metrics: dict[str, float], cfg: GRPO, step: int) -> None:
    gap, limit = metrics["sampling/logprob_difference_mean_nats"], cfg.max_logprob_difference_nats
    if limit is not None and not gap <= limit:
        raise TrainingError(
            f"at step {step + 1} sampler and learner differ by {gap:.3g} nats per token on average, more "
            f"than max_logprob_difference_nats = {limit:g}; the samples are not the policy's"
        )


def _write(path: Path, sampled: Rollouts, credited: Credited | None, step: int) -> None:
    advantages: list[list[float | None]] = [[None] * len(group.rollouts) for group in sampled.groups]
    if credited is not None:
        for place, values in zip(sampled.trained, credited.advantages, strict=True):
            advantages[place] = list(values)
    write_rollouts(path, sampled.groups, step=step, advantages=advantages)


def _state(learner: Learner, order: Loader, ahead: Ahead[Rollouts]) -> dict[str, Any]:
    pending = ahead.pending()  # first: a thread that still samples also moves `order`
    return {"learner": learner.state_dict(), "order": order.state_dict(), "pending": _pack(pending)}


def _pack(pending: Rollouts | None) -> dict[str, Any] | None:
    if pending is None:
        return None
    table = io.BytesIO()
    write_rollouts(table, pending.groups, step=0)
    content = torch.frombuffer(bytearray(table.getvalue()), dtype=torch.uint8)
    return {"table": content, "trained": pending.trained, "seconds": pending.seconds}


def _unpack(packed: dict[str, Any] | None) -> Rollouts | None:
    if packed is None:
        return None
    groups = read_rollouts(io.BytesIO(packed["table"].numpy().tobytes()))
    return Rollouts(groups, list(packed["trained"]), float(packed["seconds"]))
