"""Supervised fine-tuning: one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from posttrain.algo.masked import micro_batch_denominator
from posttrain.algo.sft import token_cross_entropy
from posttrain.data.loader import Loader
from posttrain.data.pack import collate, micro_batches
from posttrain.records import Batch, Row
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.metrics import MetricsLog, Totals
from posttrain.train.schedule import learning_rate

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.config.sft import SFT
    from posttrain.runtime.learner import Learner
    from posttrain.train.measurements import Measurements
    from posttrain.train.progress import Track


def sft_loss(
    logprobs: Tensor, batch: Batch, *, denominator: str, num_tokens: int, num_micro_batches: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the batch's targets under the recipe's `loss_denominator`."""
    divisor = {
        "step_tokens": lambda: float(num_tokens),
        "sum": lambda: float(num_micro_batches),
        "micro_batch_mean": lambda: micro_batch_denominator(batch.mask, num_micro_batches=num_micro_batches),
    }[denominator]()
    return token_cross_entropy(logprobs, batch.mask, num_tokens=num_tokens, denominator=divisor)


def num_steps(cfg: SFT, num_rows: int) -> int:
    """Optimizer steps over `num_rows` rows; an epoch's last step may be smaller."""
    return -(-num_rows // cfg.batch_rows) * cfg.epochs


def train_sft(
    learner: Learner,
    rows: Sequence[Row],
    cfg: SFT,
    *,
    seed: int,
    max_tokens: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    track: Track,
    measurements: Measurements | None = None,
) -> None:
    """Train on `rows` for `cfg.epochs`, going on from the last checkpoint if there is one.

    `max_tokens` bounds a micro-batch and changes memory only, unless the recipe divides by micro-batch.
    """
    loader = Loader(len(rows), cfg.batch_rows, seed, epochs=cfg.epochs)
    total = num_steps(cfg, len(rows))
    step = 0
    if (found := checkpoints.load()) is not None:
        step, state = found
        learner.load_state_dict(state["learner"])
        loader.load_state_dict(state["loader"])
    log.truncate_after(step)
    track.advance(step)

    for indices in loader:
        started = time.perf_counter()
        chosen = [rows[i] for i in indices]
        lengths = [len(row.ids) for row in chosen]
        groups = micro_batches(chosen, max_tokens, rows=cfg.rows_per_micro_batch)
        num_targets = sum(sum(row.mask[1:]) for row in chosen)
        loss_fn = partial(
            sft_loss, denominator=cfg.loss_denominator, num_tokens=num_targets, num_micro_batches=len(groups)
        )
        totals = Totals()
        for group in groups:
            totals.add(learner.forward_backward(collate([chosen[i] for i in group]), loss_fn))
        rate = learning_rate(
            step,
            num_steps=total,
            peak=cfg.learning_rate,
            schedule=cfg.schedule,
            warmup_steps=int(cfg.warmup_fraction * total),
        )
        totals.add(learner.optim_step(learning_rate=rate, max_grad_norm=cfg.max_grad_norm))
        step += 1
        seconds = time.perf_counter() - started
        totals.add({"batch/tokens": sum(lengths), "batch/targets": num_targets, "batch/rows": len(chosen)})
        totals.add({"time/step_seconds": seconds, "throughput/tokens_per_second": sum(lengths) / seconds})
        log.write(step, totals)
        track.advance(1, tokens=sum(lengths), metrics={"loss": totals["loss/nats_per_token"]})
        if measurements is not None:
            measurements.take_if_due(step, learner)
        checkpoints.save_if_due(
            step, lambda: {"learner": learner.state_dict(), "loader": loader.state_dict()}
        )
