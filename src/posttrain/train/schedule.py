"""Learning rate as a pure function of the optimizer step."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    step: int,
    *,
    num_steps: int,
    peak: float,
    schedule: Schedule,
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
) -> float:
    """The learning rate of one optimizer update; micro-batches do not exist here.

        warm-up, step < W:   peak * (step + 1) / (W + 1)
        after it:            peak * (f + (1 - f) * shape(u)),   u = (step - W) / (T - W)
        shape(u) = 1 (constant, whatever f), 1 - u (linear), (1 + cos(pi u)) / 2 (cosine)

    `step` counts the updates done before this one: 0 for the first of `num_steps` (T). `warmup_steps` is W,
    `final_fraction` f. The rate would reach f * peak at step T, just after the last update, so no update is
    wasted at rate zero: not the last, and, with the + 1, not the first. Past the warm-up this is Hugging
    Face's `get_scheduler`; within it theirs is peak * step / W, whose first update changes nothing.

    Units: `peak` and the result in parameter change per AdamW step. Errors: ValueError for a step outside
    [0, T), W outside [0, T], f outside [0, 1], a negative peak, or an unknown schedule.
    Source: linear, arXiv:2411.15124; cosine, arXiv:1608.03983 eq. 5 without restarts.
    """
    if schedule not in get_args(Schedule):
        raise ValueError(f"there is no schedule {schedule!r}; use one of {', '.join(get_args(Schedule))}")
    if not 0 <= step < num_steps:
        raise ValueError(f"step {step} is not one of the {num_steps} updates, which count from 0")
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}; it must lie in [0, {num_steps}], the run's steps")
    if not 0.0 <= final_fraction <= 1.0:
        raise ValueError(f"final_fraction is {final_fraction}; it must lie in [0, 1]")
    if not peak >= 0.0:
        raise ValueError(f"the peak learning rate is {peak}; it cannot be negative")
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / (num_steps - warmup_steps)
    shape = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (final_fraction + (1.0 - final_fraction) * shape)
