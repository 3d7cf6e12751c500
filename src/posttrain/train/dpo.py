"""Direct preference optimization: one page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from posttrain.algo.dpo import PREFERENCE_LOSSES, PairSums
from posttrain.algo.kto import reference_point
from posttrain.data.loader import Loader
from posttrain.data.pack import collate, micro_batches
from posttrain.records import Batch, Pair
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.metrics import MetricsLog, Totals
from posttrain.train.schedule import learning_rate

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.config.dpo import DPO
    from posttrain.runtime.learner import Learner, LossFn, Scorer
    from posttrain.train.measurements import Measurements
    from posttrain.train.progress import Track


def preference_loss(
    logprobs: Tensor, batch: Batch, *, cfg: DPO, num_pairs: int, reference_point_nats: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The recipe's loss on a batch whose rows alternate chosen, rejected; kto alone has a reference point."""
    sums, counts = batch.sum_rows(logprobs), batch.count_rows()
    reference = batch.reference_sums
    pairs = PairSums(
        chosen_sum=sums[0::2],
        rejected_sum=sums[1::2],
        chosen_count=counts[0::2],
        rejected_count=counts[1::2],
        reference_chosen_sum=None if reference is None else reference[0::2],
        reference_rejected_sum=None if reference is None else reference[1::2],
    )
    extra: dict[str, float] = {}
    if cfg.loss == "simpo":
        extra = {"gamma_beta_ratio": cfg.gamma_beta_ratio}
    elif cfg.loss == "kto":
        extra = {
            "reference_point_nats": reference_point_nats,
            "desirable_weight": cfg.desirable_weight,
            "undesirable_weight": cfg.undesirable_weight,
        }
    return PREFERENCE_LOSSES[cfg.loss](
        pairs, beta=cfg.beta, num_pairs=num_pairs, label_smoothing=cfg.label_smoothing, **extra
    )


def reference_sums(
    scorer: Scorer, pairs: Sequence[Pair], *, max_tokens: int, track: Track
) -> dict[str, float]:
    """Row id -> the reference's summed log-probability (nats) of the row's targets, for every row once.

    Keyed by id, so that neither shuffling nor resuming can misalign them.
    """
    rows = [row for pair in pairs for row in pair]
    found: dict[str, float] = {}
    for group in micro_batches(rows, max_tokens):
        batch = collate([rows[i] for i in group])
        found.update(zip(batch.row_ids, batch.sum_rows(scorer.logprobs(batch)).tolist(), strict=True))
        track.advance(len(group), tokens=len(batch.ids))
    return found


def measure_reference_point(
    scorer: Scorer, pairs: Sequence[Pair], references: dict[str, float], *, max_tokens: int
) -> float:
    """KTO's z0 in nats: how far the policy is from the reference on the mismatched `pairs` of a step."""
    rows = [row for pair in pairs for row in pair]
    total = torch.zeros(())
    for group in micro_batches(rows, max_tokens):
        batch = collate([rows[i] for i in group], reference_sums=[references[rows[i].id] for i in group])
        assert batch.reference_sums is not None
        total += (batch.sum_rows(scorer.logprobs(batch)) - batch.reference_sums).sum()
    every = torch.ones(1, dtype=torch.bool)
    return float(reference_point(total[None], every, num_rows=len(rows)))


def step_loss(
    learner: Learner,
    cfg: DPO,
    num_pairs: int,
    others: Sequence[Pair],
    references: dict[str, float] | None,
    *,
    max_tokens: int,
) -> LossFn:
    """The loss of a step of `num_pairs`; kto's has its reference point measured on `others`."""
    if cfg.loss != "kto":
        return partial(preference_loss, cfg=cfg, num_pairs=num_pairs)
    assert references is not None
    point = measure_reference_point(learner, others, references, max_tokens=max_tokens)
    return partial(preference_loss, cfg=cfg, num_pairs=num_pairs, reference_point_nats=point)


def num_steps(cfg: DPO, num_pairs: int) -> int:
    """Optimizer steps over `num_pairs` pairs; an epoch's last step may be smaller."""
    return -(-num_pairs // cfg.batch_pairs) * cfg.epochs


def train_dpo(
    learner: Learner,
    pairs: Sequence[Pair],
    references: dict[str, float] | None,
    cfg: DPO,
    *,
    mismatched: Sequence[Pair] = (),
    seed: int,
    max_tokens: int,
    log: MetricsLog,
    checkpoints: Checkpoints,
    track: Track,
    measurements: Measurements | None = None,
) -> None:
    """Train on `pairs`; `references` come from the stage's *starting* model, None for a loss without one.

    kto also needs `mismatched`, one for each of `pairs`, and their references.
    """
    loader = Loader(len(pairs), cfg.batch_pairs, seed, epochs=cfg.epochs)
    total = num_steps(cfg, len(pairs))
    step = 0
    if (found := checkpoints.load()) is not None:
        step, state = found
        learner.load_state_dict(state["learner"])
        loader.load_state_dict(state["loader"])
    log.truncate_after(step)
    track.advance(step)

    for indices in loader:
        started = time.perf_counter()
        rows = [row for i in indices for row in pairs[i]]
        lengths = [len(row.ids) for row in rows]
        others = [mismatched[i] for i in indices] if cfg.loss == "kto" else []
        loss_fn = step_loss(learner, cfg, len(indices), others, references, max_tokens=max_tokens)
        totals = Totals()
        for group in micro_batches(rows, max_tokens, together=2):
            chosen = [rows[i] for i in group]
            columns = {} if references is None else {"reference_sums": [references[row.id] for row in chosen]}
            totals.add(learner.forward_backward(collate(chosen, **columns), loss_fn))
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
        totals.add({"batch/tokens": sum(lengths), "batch/pairs": len(indices)})
        totals.add({"time/step_seconds": seconds, "throughput/tokens_per_second": sum(lengths) / seconds})
        log.write(step, totals)
        shown = {"loss": totals["loss/nats_per_pair"], "accuracy": totals["rewards/accuracies"]}
        track.advance(1, tokens=sum(lengths), metrics=shown)
        if measurements is not None:
            measurements.take_if_due(step, learner)
        checkpoints.save_if_due(
            step, lambda: {"learner": learner.state_dict(), "loader": loader.state_dict()}
        )
