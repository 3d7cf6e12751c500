"""Processes that run untrusted-size work under a hard time limit and a memory limit.

Works the same from the main thread, another thread, a coroutine, a daemonic process and a Ray actor: the
limits are kept by each worker's own kernel timer, not by signals in the caller. Linux and macOS only.

What it does not do: it is no sandbox. A call may read files and open sockets.
"""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

Call = tuple[Callable[..., Any], tuple[Any, ...]]
Outcome = tuple[bool, Any]
"""(True, result) or (False, why not)."""

MEMORY_BYTES = 2 * 2**30
_START = "from posttrain.rewards.worker import main; main()"
_BATCH = 16
_CALLS_PER_WORKER = 4
_START_SECONDS = 120.0
_GRACE_SECONDS = 5.0
_MOST_WORKERS = 8


class _Worker:
    """One worker process and the calls it is busy with, by index."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-W", "ignore", "-c", _START]
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(MEMORY_BYTES)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())
        self.connection.send(sys.path)
        self.ready = False
        self.busy: deque[int] = deque()
        self.deadline = time.monotonic() + _START_SECONDS

    def close(self) -> None:
        """End the process and reap it."""
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def forget(self) -> None:
        """Drop a worker that belongs to the process we were forked from."""
        self.connection.close()
        self.process.returncode = 0  # not our child: never wait for it


class Pool:
    """Up to `workers` processes, started when first needed, replaced when they die."""

    def __init__(self, workers: int | None = None) -> None:
        self.limit = workers or min(_MOST_WORKERS, _num_cores())
        if self.limit < 1:
            raise ValueError(f"a pool needs at least one worker, not {workers}")
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def run(self, calls: Sequence[Call], *, timeout_seconds: float) -> list[Outcome]:
        """The outcome of each call, in order; a call that fails, dies or takes too long says so.

        Functions and results must pickle; functions live in importable modules, not in `__main__`.
        """
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds is {timeout_seconds}; it must be positive")
        for function, _ in calls:
            if function.__module__ == "__main__":
                raise ValueError(
                    f"{function.__name__} is in a script; move it to a module that workers can import"
                )
        with self._lock:
            return _Round(self, calls, timeout_seconds).run()

    def close(self) -> None:
        """End all workers; a later `run` starts new ones."""
        with self._lock:
            while self._workers:
                self._workers.pop().close()

    def process_ids(self) -> list[int]:
        """The process ids of the workers alive now."""
        return [worker.process.pid for worker in self._workers if worker.process.poll() is None]


class _Round:
    """One `run`: what is waiting, what has come back."""

    def __init__(self, pool: Pool, calls: Sequence[Call], timeout_seconds: float) -> None:
        self.pool = pool
        self.timeout_seconds = timeout_seconds
        self.outcomes: list[Outcome | None] = [None] * len(calls)
        self.pickled: list[bytes] = []
        self.waiting: deque[int] = deque()
        for index, call in enumerate(calls):
            pickled = _pickle(call)
            if isinstance(pickled, bytes):
                self.waiting.append(index)
                self.pickled.append(pickled)
            else:
                self.outcomes[index] = (False, pickled)
                self.pickled.append(b"")

    def run(self) -> list[Outcome]:
        workers = self.pool._workers
        batch = max(1, min(_BATCH, len(self.waiting) // (4 * self.pool.limit)))
        wanted = min(self.pool.limit, -(-len(self.waiting) // _CALLS_PER_WORKER))
        while len(workers) < wanted:
            workers.append(_Worker())
        try:
            while self.waiting or any(worker.busy for worker in workers):
                for worker in [w for w in workers if w.ready and not w.busy]:
                    self._hand_out(worker, batch)
                self._collect()
        except BaseException:
            # Interrupted: what is still on its way must not answer the next round.
            while workers:
                workers.pop().close()
            raise
        return [outcome or (False, "the pool lost this call") for outcome in self.outcomes]

    def _hand_out(self, worker: _Worker, batch: int) -> None:
        while self.waiting and len(worker.busy) < batch:
            worker.busy.append(self.waiting.popleft())
        if not worker.busy:
            return
        worker.deadline = self._backstop()
        try:
            worker.connection.send(([self.pickled[i] for i in worker.busy], self.timeout_seconds))
        except (BrokenPipeError, ConnectionResetError):
            self._requeue(worker)  # it died while idle: no call is to blame
            self._replace(worker, None)

    def _requeue(self, worker: _Worker) -> None:
        self.waiting.extendleft(reversed(worker.busy))
        worker.busy.clear()

    def _backstop(self) -> float:
        return time.monotonic() + self.timeout_seconds + _GRACE_SECONDS

    def _collect(self) -> None:
        """Take what has come back; replace the workers that died or overran the backstop."""
        workers = [w for w in self.pool._workers if w.busy or not w.ready]
        soonest = min(worker.deadline for worker in workers)
        readable = wait([w.connection for w in workers], max(0.0, soonest - time.monotonic()))
        for worker in workers:
            if worker.connection in readable:
                self._receive(worker)
            elif time.monotonic() > worker.deadline:
                self._replace(worker, self._too_long())

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(worker, None)
            return
        if not worker.ready:
            worker.ready = True
            return
        self.outcomes[worker.busy.popleft()] = message
        worker.deadline = self._backstop()

    def _replace(self, worker: _Worker, reason: str | None) -> None:
        """Put a new worker in place of a dead one; its first call failed, the others are tried again."""
        from signal import SIGALRM

        worker.connection.close()
        if reason is not None:
            worker.process.kill()
        code = worker.process.wait()
        if not worker.ready:
            raise RuntimeError(f"a verifier process could not start; it ended with code {code}")
        if worker.busy:
            ended = self._too_long() if code == -SIGALRM else f"the process died with code {code}"
            self.outcomes[worker.busy.popleft()] = (False, reason or ended)
        self._requeue(worker)
        self.pool._workers.remove(worker)
        self.pool._workers.append(_Worker())

    def _too_long(self) -> str:
        return f"took longer than {self.timeout_seconds:g} seconds"


def _pickle(call: Call) -> bytes | str:
    """The call pickled, or why it cannot be."""
    try:
        return pickle.dumps(call)
    except (pickle.PicklingError, TypeError, AttributeError) as fault:
        return f"{type(fault).__name__}: {fault}"[:300]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_SHARED: dict[int | None, Pool] = {}
_SHARED_LOCK = threading.Lock()


def shared_pool(workers: int | None = None) -> Pool:
    """The pool of this process with that many workers; the same one at every call, closed at exit."""
    with _SHARED_LOCK:
        if workers not in _SHARED:
            _SHARED[workers] = Pool(workers)
        return _SHARED[workers]


def close_shared_pools() -> None:
    """End the workers of all shared pools; the next use starts new ones."""
    with _SHARED_LOCK:
        pools = list(_SHARED.values())
        _SHARED.clear()
    for pool in pools:
        pool.close()


def _forget_shared_pools() -> None:
    """In a forked child: the workers belong to the parent, the locks may be held for ever."""
    global _SHARED_LOCK
    _SHARED_LOCK = threading.Lock()
    for pool in _SHARED.values():
        for worker in pool._workers:
            worker.forget()
    _SHARED.clear()


atexit.register(close_shared_pools)
os.register_at_fork(after_in_child=_forget_shared_pools)
