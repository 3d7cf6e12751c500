"""Learning-rate schedules, against hand arithmetic and Hugging Face's."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.train.schedule import Schedule, learning_rate


def trace(num_steps: int, **settings: object) -> list[float]:
    return [learning_rate(step, num_steps=num_steps, **settings) for step in range(num_steps)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # W = 2, T = 6: 9/3, 18/3, then 9 (6 - s) / 4
        ({"schedule": "linear", "warmup_steps": 2}, [3, 6, 9, 6.75, 4.5, 2.25]),
        ({"schedule": "constant", "warmup_steps": 2}, [3, 6, 9, 9, 9, 9]),
        # towards 9 / 3 = 3: 3 + 6 (6 - s) / 6
        ({"schedule": "linear", "final_fraction": 1 / 3}, [9, 8, 7, 6, 5, 4]),
        # half-way down after half of the four steps past the warm-up; cos(pi/4) = 0.70711
        (
            {"schedule": "cosine", "warmup_steps": 2},
            [3, 6, 9, 4.5 * (1 + math.sqrt(0.5)), 4.5, 4.5 * (1 - math.sqrt(0.5))],
        ),
        ({"schedule": "constant", "final_fraction": 0.5}, [9, 9, 9, 9, 9, 9]),
        ({"schedule": "linear", "warmup_steps": 6}, [9 * k / 7 for k in range(1, 7)]),
    ],
)
def test_traces_by_hand(settings: dict[str, object], expected: list[float]) -> None:
    """Six updates at a peak of 9, worked out beside each case.

    Closes T21 at the schedule: warm-up and decay count updates, one entry each, and nothing else.
    """
    assert trace(6, peak=9.0, **settings) == pytest.approx(expected)


def test_cosine_with_a_floor() -> None:
    """W = 1, T = 5, f = 0.1: at u = 1/2, 0.1 + 0.9 / 2; at u = 3/4, 0.1 + 0.45 (1 - 0.70711) = 0.23180."""
    found = trace(5, peak=1.0, schedule="cosine", warmup_steps=1, final_fraction=0.1)
    assert found[0] == pytest.approx(0.5)
    assert found[1] == pytest.approx(1.0)
    assert found[3] == pytest.approx(0.55)
    assert found[4] == pytest.approx(0.2318019, abs=1e-7)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_equals_hugging_face_past_the_warm_up(schedule: Schedule) -> None:
    """Independent implementation: transformers' `get_scheduler`, 20 updates of which 4 warm up."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-6)
    reference = get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=20)
    for step in range(20):
        ours = learning_rate(step, num_steps=20, peak=5e-6, schedule=schedule, warmup_steps=4)
        theirs = reference.get_last_lr()[0]
        # theirs warms up over 0, 1/4 ... 3/4 of the peak, ours over 1/5 ... 4/5
        assert ours == pytest.approx(theirs if step >= 4 else 5e-6 * (step + 1) / 5, rel=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_no_update_is_wasted_and_none_exceeds_the_peak(schedule: Schedule, warmup_steps: int) -> None:
    rates = trace(7, peak=2.0, schedule=schedule, warmup_steps=warmup_steps)
    assert all(0 < rate <= 2.0 for rate in rates)
    assert max(rates) == 2.0 or warmup_steps == 7


def test_one_update_uses_the_peak() -> None:
    assert trace(1, peak=3.0, schedule="linear") == [3.0]


@pytest.mark.parametrize(
    ("step", "settings", "message"),
    [
        (10, {}, "count from 0"),
        (-1, {}, "count from 0"),
        (0, {"warmup_steps": 11}, "warmup_steps"),
        (0, {"warmup_steps": -1}, "warmup_steps"),
        (0, {"final_fraction": 1.5}, "final_fraction"),
        (0, {"peak": -1.0}, "negative"),
        (0, {"schedule": "linaer"}, "constant, linear, cosine"),
    ],
)
def test_impossible_requests_are_refused(step: int, settings: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"num_steps": 10, "peak": 1.0, "schedule": "linear", **settings}
    with pytest.raises(ValueError, match=message):
        learning_rate(step, **arguments)  # type: ignore[arg-type]
