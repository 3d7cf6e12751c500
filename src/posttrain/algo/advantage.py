"""Advantages of completions sampled for the same prompt, relative to their group.

Notation: P prompts, G completions each; row p of `rewards` (P, G) holds prompt p's group. All functions
return (P, G) in the rewards' type, and exactly 0 for a group whose rewards are all equal: it has no signal,
but rounding of its mean, divided by an epsilon, could look like one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.algo.masked import check_denominator


def zero_signal_groups(rewards: Tensor) -> Tensor:
    """(P,) bool: True for groups whose rewards are all equal, which teach nothing about the reward.

    Shapes: rewards (P, G). Errors: ValueError if not two-dimensional floating point, if G < 2, or if a
    reward is not finite. Source: arXiv:2503.14476 section 3.2 (dynamic sampling drops these groups).
    """
    if rewards.ndim != 2 or not rewards.is_floating_point():
        raise ValueError(
            f"rewards are {tuple(rewards.shape)} {rewards.dtype}; give floats of shape (prompts, completions)"
        )
    if rewards.shape[1] < 2:
        raise ValueError("a group of 1 has no baseline; sample at least 2 completions per prompt")
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError("a reward is inf or nan; verifiers must return finite values")
    return (rewards == rewards[:, :1]).all(dim=1)


def _centred(rewards: Tensor) -> Tensor:
    """(P, G): rewards minus their group's mean; exactly 0 in groups without signal."""
    silent = zero_signal_groups(rewards)[:, None]
    return torch.where(silent, 0.0, rewards - rewards.mean(dim=1, keepdim=True))


def group_std(rewards: Tensor, *, std_ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """Rewards centred on their group's mean and divided by its standard deviation.

        A_i = (r_i - mean) / (std + eps),   std^2 = sum_j (r_j - mean)^2 / (G - std_ddof)

    The published runs differ in `std_ddof`: Tülu 3.1 and OLMo 2 used 1 (unbiased), later open-instruct 0;
    the factor is sqrt(G / (G - 1)), 3.3 % at G = 16. A constant scale of the rewards cancels.

    Shapes: rewards (P, G) -> (P, G). Unit: none. Errors: those of `zero_signal_groups`; ValueError unless
    `std_ddof` is 0 or 1. Source: arXiv:2402.03300 section 4.1.2; open-instruct at 3f37c29 (ddof, eps).
    """
    if std_ddof not in (0, 1):
        raise ValueError(f"std_ddof is {std_ddof}; it must be 0 (population) or 1 (unbiased)")
    centred = _centred(rewards)
    return centred / (rewards.std(dim=1, correction=std_ddof, keepdim=True) + eps)


def group_centred(rewards: Tensor, *, std_ddof: int = 1) -> Tensor:
    """Rewards centred on their group's mean; easy and hard prompts keep their own scale.

        A_i = r_i - mean

    `std_ddof` is there so that all three are called alike; no standard deviation is taken.

    Shapes: rewards (P, G) -> (P, G). Unit: that of the rewards, whose scale therefore matters.
    Errors: those of `zero_signal_groups`. Source: arXiv:2503.20783 section 3 (Dr. GRPO).
    """
    return _centred(rewards)


def leave_one_out(rewards: Tensor, *, std_ddof: int = 1) -> Tensor:
    """Rewards minus the mean of the *other* completions, an unbiased baseline.

        A_i = r_i - 1/(G-1) * sum_{j != i} r_j  =  G/(G-1) * (r_i - mean)

    `std_ddof` is there so that all three are called alike; no standard deviation is taken.

    Shapes: rewards (P, G) -> (P, G). Unit: that of the rewards.
    Errors: those of `zero_signal_groups`. Source: arXiv:2402.14740 (RLOO, after Kool et al. 2019).
    """
    centred = _centred(rewards)
    others = rewards.shape[1] - 1
    return centred * ((others + 1) / others)


ADVANTAGES: dict[str, Callable[..., Tensor]] = {
    "group_std": group_std,
    "group_centred": group_centred,
    "leave_one_out": leave_one_out,
}
"""By recipe name; all are called as `advantage(rewards, std_ddof=)`."""


def reward_metrics(rewards: Tensor, *, num_groups: float, std_ddof: int = 1) -> dict[str, Tensor]:
    """What a step's rewards look like; each metric is divided by the step's `num_groups`, so parts add up.

    - `reward/mean`: mean reward of a completion.
    - `reward/std`: standard deviation within a group (with `std_ddof`), averaged over groups.
    - `reward/zero_signal_groups_fraction`: share of groups whose rewards are all equal.

    Shapes: rewards (P, G). Units: those of the rewards; the share in [0, 1].
    Errors: those of `zero_signal_groups` and `check_denominator`. Source: definition.
    """
    silent = zero_signal_groups(rewards)
    groups = check_denominator(num_groups)
    std = torch.where(silent, 0.0, rewards.std(dim=1, correction=std_ddof))
    return {
        "reward/mean": rewards.mean(dim=1).sum() / groups,
        "reward/std": std.sum() / groups,
        "reward/zero_signal_groups_fraction": silent.to(rewards.dtype).sum() / groups,
    }
