"""One step ahead or none: who is called when, with which weights, and what happens when sampling fails."""

from __future__ import annotations

import threading

import pytest

from posttrain.rollout.ahead import Ahead


class World:
    """A learner that counts its updates and a sampler that answers (step, version of the weights it had)."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.updates = self.version = 0
        self.fail_at = fail_at
        self.block_from = 0
        """The first step whose sampling waits until `free` is set."""
        self.calls: list[str] = []
        self.threads: list[str] = []
        self.free = threading.Event()
        self.free.set()
        self.sampling = threading.Lock()

    def publish(self) -> None:
        assert not self.sampling.locked(), "weights changed under a running sampler"
        self.version = self.updates
        self.calls.append(f"publish {self.version}")

    def sample(self, step: int) -> tuple[int, int]:
        with self.sampling:
            version = self.version
            assert step < self.block_from or self.free.wait(30)
            if step == self.fail_at:
                raise RuntimeError(f"no rollouts at step {step}")
            self.calls.append(f"sample {step}")
            self.threads.append(threading.current_thread().name)
            return step, version

    def rest(self) -> None:
        assert not self.sampling.locked(), "weights taken from a running sampler"
        self.calls.append(f"rest {self.version}")

    def ahead(self, depth: int, num_steps: int = 4, pending=None) -> Ahead:
        return Ahead(
            depth=depth,
            num_steps=num_steps,
            publish=self.publish,
            sample=self.sample,
            rest=self.rest,
            pending=pending,
        )


def train(world: World, ahead: Ahead, steps) -> list[tuple[int, int]]:
    """What each step was given: (step, version); an update follows each."""
    given = []
    for step in steps:
        given.append(ahead.take(step))
        world.updates += 1
    return given


def test_depth_0_is_on_policy():
    world = World()
    ahead = world.ahead(0)
    assert train(world, ahead, range(4)) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert world.calls == [f"{verb} {step}" for step in range(4) for verb in ("publish", "sample", "rest")]
    assert set(world.threads) == {threading.current_thread().name}
    assert ahead.pending() is None
    ahead.close()


def test_depth_1_is_one_step_stale_and_no_more():
    """Step t's rollouts come from the weights after t - 1 updates; the first step's are fresh."""
    world = World()
    ahead = world.ahead(1)
    assert train(world, ahead, range(4)) == [(0, 0), (1, 0), (2, 1), (3, 2)]
    ahead.close()
    assert [call for call in world.calls if call.startswith("sample")] == [f"sample {i}" for i in range(4)]
    assert not any(call.startswith("rest") for call in world.calls), "it may be sampling still"
    assert len(set(world.threads)) == 2


def test_depth_1_samples_while_the_caller_trains():
    """`take` returns though the next step's sampling cannot end before the caller has trained."""
    world = World()
    ahead = world.ahead(1)
    world.block_from = 1
    world.free.clear()
    assert ahead.take(0) == (0, 0)
    world.updates += 1
    world.free.set()
    assert ahead.take(1) == (1, 0)
    ahead.close()


def test_nothing_is_sampled_beyond_the_last_step():
    world = World()
    ahead = world.ahead(1, num_steps=2)
    train(world, ahead, range(2))
    assert ahead.pending() is None
    ahead.close()
    assert "sample 2" not in world.calls


@pytest.mark.parametrize("depth", [0, 1])
def test_a_failure_while_sampling_reaches_the_caller(depth):
    """From the thread too: at the call that would have used the rollouts. Closes T60."""
    world = World(fail_at=2)
    ahead = world.ahead(depth)
    assert len(train(world, ahead, range(2))) == 2
    with pytest.raises(RuntimeError, match="no rollouts at step 2"):
        ahead.take(2)
    ahead.close()


def test_a_failure_reaches_a_checkpoint_too():
    world = World(fail_at=1)
    ahead = world.ahead(1)
    ahead.take(0)
    with pytest.raises(RuntimeError, match="no rollouts at step 1"):
        ahead.pending()
    ahead.close()


def test_pending_is_what_the_next_step_gets():
    world = World()
    ahead = world.ahead(1)
    ahead.take(0)
    held = ahead.pending()
    assert held == (1, 0)
    world.updates += 1
    assert ahead.take(1) is held
    ahead.close()


def test_resuming_from_pending_gives_what_an_uninterrupted_run_gives():
    """A checkpoint after step 1 holds step 2's rollouts; they are not sampled again. Closes T54."""
    straight = World()
    ahead = straight.ahead(1)
    expected = train(straight, ahead, range(4))
    ahead.close()

    first = World()
    ahead = first.ahead(1)
    train(first, ahead, range(2))
    held = ahead.pending()
    ahead.close()

    second = World()
    second.updates = first.updates
    ahead = second.ahead(1, pending=held)
    assert train(second, ahead, range(2, 4)) == expected[2:]
    assert "sample 2" not in second.calls
    ahead.close()


def test_closing_waits_for_the_running_step():
    world = World()
    ahead = world.ahead(1)
    ahead.take(0)
    ahead.close()
    assert world.calls[-1] == "sample 1"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rollouts")]


@pytest.mark.parametrize("depth", [-1, 2])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match="depth"):
        World().ahead(depth)
