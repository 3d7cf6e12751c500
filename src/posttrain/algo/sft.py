"""Supervised fine-tuning: the cross-entropy of the target tokens."""

from __future__ import annotations

from torch import Tensor

from posttrain.algo.masked import masked_mean


def token_cross_entropy(
    logprobs: Tensor, mask: Tensor, *, num_tokens: float, denominator: float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the target tokens, divided by the step's denominator.

        loss = -1/D * sum_t mask_t * logprobs_t

    One formula, three published reductions; only D differs, and the caller says which:

    - `denominator=None`: D = num_tokens, the targets of the whole optimizer step over all micro-batches
      and ranks. The exact token mean; independent of how the step is split.
    - `denominator=num_micro_batches` (those of the step, over all ranks): the summed loss of Tülu 3 and
      OLMo 2. Tokens weigh alike; the scale grows with the tokens per micro-batch, which Adam and
      gradient clipping mostly remove.
    - `denominator=micro_batch_denominator(mask, num_micro_batches=...)`: the mean of micro-batch means of
      Hugging Face trainers before late 2024. Tokens of short micro-batches weigh more.

    Shapes: `logprobs` and `mask` (...), equal, usually (N,). Units: nats in, nats per token out.
    Metric `loss/nats_per_token` is always divided by `num_tokens`, whatever D is, so that runs with
    different reductions can be compared. Loss and metric add up over micro-batches.
    Errors: ValueError for unequal shapes, a non-boolean mask or a denominator that is not positive.
    Source: maximum likelihood; reductions: arXiv:2411.15124 section 4 and open-instruct at 3f37c29
    (`reduce_loss`).
    """
    loss = -masked_mean(logprobs, mask, denominator=num_tokens if denominator is None else denominator)
    metrics = {"loss/nats_per_token": -masked_mean(logprobs.detach(), mask, denominator=num_tokens)}
    return loss, metrics
