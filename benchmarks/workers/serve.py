"""The side of a measurement that runs in the contestant's own environment: standard library only.

A worker reads its settings (a line of JSON), prepares once, says `{"ready": true}`, and then measures each time a line
comes in, so that contestants take turns without loading again. At the end of its input it reports its peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(prepare: Callable[[dict[str, Any]], Callable[[], dict[str, float]]]) -> None:
    """`prepare(settings)` returns what does one measured piece of work and says how much it was.

    The work's `seconds` are taken here unless it took them itself; a GPU has then done all it was asked to.
    """
    settings = json.loads(sys.stdin.readline())
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print; the answers have the channel for themselves
    work = prepare(settings)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for _ in sys.stdin:
        _synchronise()
        started = time.perf_counter()
        found = work()
        _synchronise()
        found.setdefault("seconds", time.perf_counter() - started)
        print(json.dumps(found), file=out, flush=True)
    # the process and its largest child, both in KiB on Linux
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"peak_rss_gib": peak / 2**20} | _gpu_peak()), file=out, flush=True)


def _gpu() -> Any:
    """`torch.cuda` where the contestant has used it; None on a CPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _synchronise() -> None:
    if (gpu := _gpu()) is not None:
        gpu.synchronize()


def _gpu_peak() -> dict[str, float]:
    gpu = _gpu()
    return {} if gpu is None else {"peak_gpu_gib": gpu.max_memory_allocated() / 2**30}
