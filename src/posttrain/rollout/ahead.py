"""Rollouts of the next step while this one trains: depth 0 or 1."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Rollouts = TypeVar("Rollouts")


class Ahead(Generic[Rollouts]):
    """Hands out the rollouts of one step after another, sampled `depth` steps before they are asked for.

    `publish()` gives the sampler the learner's newest weights; `sample(step)` makes a step's rollouts. They
    never run at the same time. With depth 0 both run when a step asks, so rollouts are on policy; then `rest()`,
    after which the sampler holds no weights while the learner works. With depth 1
    a thread samples step t + 1 while the caller trains on step t: those weights lack step t's updates when
    they are used, which is the one-step staleness of Cleanba (arXiv:2310.00036) and the Tülu 3 runs.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_steps: int,
        publish: Callable[[], None],
        sample: Callable[[int], Rollouts],
        rest: Callable[[], None],
        pending: Rollouts | None = None,
    ) -> None:
        if depth not in (0, 1):
            raise ValueError(f"depth is {depth}; it must be 0 or 1")
        self._depth, self._num_steps = depth, num_steps
        self._publish, self._sample, self._rest = publish, sample, rest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollouts") if depth else None
        self._next: Future[Rollouts] | None = None
        if pending is not None:
            self._next = Future()
            self._next.set_result(pending)

    def take(self, step: int) -> Rollouts:
        """The rollouts of `step`; with depth 1 the next step's begin before this returns."""
        if self._thread is None:
            self._publish()
            found = self._sample(step)
            self._rest()
            return found
        if self._next is None:
            self._publish()
            current = self._sample(step)
        else:
            current = self._next.result()
            self._publish()
        self._next = self._thread.submit(self._sample, step + 1) if step + 1 < self._num_steps else None
        return current

    def pending(self) -> Rollouts | None:
        """The next step's rollouts if they were begun, waiting for them: a checkpoint must hold them."""
        return None if self._next is None else self._next.result()

    def close(self) -> None:
        """Let a running step finish and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
