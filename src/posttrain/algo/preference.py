"""Learning from pairs: the Bradley-Terry likelihood, and what every pairwise loss reports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.algo.masked import masked_mean


def logistic_loss(logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Per-pair negative log-likelihood that the chosen side wins.

        loss = -(1 - e) * log sigmoid(z) - e * log sigmoid(-z)

    e = `label_smoothing` is the assumed share of pairs whose labels are swapped (conservative DPO).

    Shapes: z = `logits` (B,), result (B,). Unit: nats. Errors: ValueError unless 0 <= e < 0.5.
    Source: Bradley and Terry 1952; smoothing: E. Mitchell, "A note on DPO with noisy preferences" (2023).
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 0.5)")
    # at 0 the second term is left out: 0 * inf is nan
    loss = -(1 - label_smoothing) * logsigmoid(logits)
    return loss - label_smoothing * logsigmoid(-logits) if label_smoothing else loss


def pair_metrics(chosen: Tensor, rejected: Tensor, mask: Tensor, *, num_pairs: float) -> dict[str, Tensor]:
    """`rewards/*` of a batch of pairs, each divided by `num_pairs`, so that they add up over a step.

    - `rewards/chosen`, `rewards/rejected`: mean reward of each side.
    - `rewards/margins`: mean of chosen minus rejected.
    - `rewards/accuracies`: share of pairs whose chosen side scores higher; a tie counts one half.
    - `rewards/ties`: share of exact ties (1 while the policy still is the reference).

    Shapes: all (B,); `mask` is True for pairs that count. Units: those of the rewards; shares in [0, 1].
    Errors: those of `masked_mean`. Source: arXiv:2305.18290 section 6 (implicit reward accuracy);
    counting a tie one half is the area under the ROC curve's rule.
    """

    def step_mean(values: Tensor) -> Tensor:
        return masked_mean(values.detach(), mask, denominator=num_pairs)

    ties = (chosen == rejected).to(chosen.dtype)
    wins = (chosen > rejected).to(chosen.dtype)
    return {
        "rewards/chosen": step_mean(chosen),
        "rewards/rejected": step_mean(rejected),
        "rewards/margins": step_mean(chosen - rejected),
        "rewards/accuracies": step_mean(wins + 0.5 * ties),
        "rewards/ties": step_mean(ties),
    }


def bradley_terry(
    chosen_scores: Tensor, rejected_scores: Tensor, *, num_pairs: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reward-model loss: no margin, no centring, no smoothing.

        loss = -1/N * sum_i log sigmoid(chosen_i - rejected_i)

    Shapes: scores (B,), a scalar head's output at each row's last token. `num_pairs` is N, the pairs of
    the whole optimizer step. Units: scores in logits, loss in nats per pair.
    Metrics: `loss/nats_per_pair` and those of `pair_metrics`; all add up over micro-batches.
    Errors: ValueError for unequal shapes or a count that is not positive.
    Source: arXiv:2203.02155 eq. 1; arXiv:2411.15124 (value initialisation); open-instruct at 3f37c29,
    `reward_modeling.py`.
    """
    if chosen_scores.shape != rejected_scores.shape:
        raise ValueError(
            f"chosen {tuple(chosen_scores.shape)} and rejected {tuple(rejected_scores.shape)} scores differ "
            "in shape; give one of each per pair"
        )
    every = torch.ones_like(chosen_scores, dtype=torch.bool)
    per_pair = logistic_loss(chosen_scores - rejected_scores)
    loss = masked_mean(per_pair, every, denominator=num_pairs)
    metrics = pair_metrics(chosen_scores, rejected_scores, every, num_pairs=num_pairs)
    return loss, {"loss/nats_per_pair": loss.detach(), **metrics}
