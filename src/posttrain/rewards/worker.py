"""One process of the pool: takes calls from a socket, sends an outcome back for each, in order.

Started by `pool.py` in a fresh interpreter. It never imports the caller's main module, so scripts
need no `__main__` guard, and nothing is forked, so the caller's threads do not matter.

A call that outlives its limit is ended by the kernel: the alarm keeps its default action, which ends the
process whatever it is doing. The pool sees the closed socket and starts another worker.
"""

from __future__ import annotations

import importlib
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

WARM_UP = ("posttrain.rewards.math", "mpmath")
"""Imported before the first call, so that no call pays for it; sympy waits for the first that needs it."""


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """(True, result), or (False, why not) whatever `function` raises.

    The one broad `except` of the rewards: a check that fails on a reply is a failed sample with a reason,
    counted by its verdict, and must not end the run.
    """
    try:
        return True, function(*arguments)
    except Exception as fault:
        return False, f"{type(fault).__name__}: {fault}"[:300]


def main() -> None:
    """Answer calls until the pool hangs up. Arguments: file descriptor, memory limit in bytes."""
    connection = Connection(int(sys.argv[1]))
    memory_bytes = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    try:
        sys.path[:] = connection.recv()
        for name in WARM_UP:
            importlib.import_module(name)
        connection.send("ready")
        while True:
            _answer(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _answer(connection: Connection) -> None:
    """Answer one message: a list of pickled calls and the limit of each, in seconds."""
    calls, timeout_seconds = connection.recv()
    for pickled in calls:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
        outcome = attempt(_call, (pickled,))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sent, why = attempt(connection.send, (outcome,))
        if not sent:  # the result does not pickle
            connection.send((False, why))


def _call(pickled: bytes) -> Any:
    import pickle

    function, arguments = pickle.loads(pickled)
    return function(*arguments)
