"""Contestants take turns on one machine: medians of alternating runs, and the ratios between them."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.machine import describe_machine

ROOT = Path(__file__).parents[2]
RESULTS = Path(os.environ.get("POSTTRAIN_BENCH_RESULTS", ROOT / "benchmarks" / "results"))
WORKERS = ROOT / "benchmarks" / "workers"
PEERS = Path(os.environ.get("POSTTRAIN_BENCH_PEERS", ROOT / ".env-bench" / "bin" / "python"))
"""The peers' interpreter."""
OURS = Path(sys.executable)


@dataclass(frozen=True)
class Contestant:
    """A worker program with its settings; `note` says what was tried for it."""

    name: str
    script: str
    settings: dict[str, Any]
    note: str
    python: Path = OURS
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[str]:
        """Its process, before it is ready; its settings are its first line of input, for which there is no limit."""
        process = subprocess.Popen(
            [str(self.python), str(WORKERS / self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.environment,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already, as who waits for its answer will see
            process.stdin.write(json.dumps(self.settings) + "\n")
            process.stdin.flush()
        return process


def answer(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """The worker's next line; RuntimeError when it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with exit code {process.wait()} before it answered")
    found: dict[str, Any] = json.loads(line)
    return found


def _ask(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write("run\n")
    process.stdin.flush()
    figures = answer(process, name)
    print(f"  {name}: {figures}", file=sys.stderr, flush=True)
    return figures


def _end(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """Close its input, which ends it; its peak memory."""
    assert process.stdin is not None
    process.stdin.close()
    peak = answer(process, name)
    process.wait()
    return peak


def audition(
    candidates: Sequence[Contestant], *, warm_ups: int = 0
) -> tuple[Contestant | None, dict[str, Any]]:
    """The fastest of a peer's settings, and what each came to: run once, by itself, with the memory its own."""
    tried: dict[str, Any] = {}
    for candidate in candidates:
        if not candidate.python.exists():
            return None, {candidate.name: "its environment is not there; run `make bench-setup`"}
        process = candidate.start()
        try:
            answer(process, candidate.name)
            for _ in range(warm_ups):
                _ask(process, candidate.name)
            tried[candidate.name] = _ask(process, candidate.name) | _end(process, candidate.name)
        except (RuntimeError, BrokenPipeError) as error:
            tried[candidate.name] = str(error)
    finished = [c for c in candidates if isinstance(tried[c.name], dict)]
    return min(finished, key=lambda c: tried[c.name]["seconds"], default=None), tried


def race(contestants: Sequence[Contestant], *, runs: int, warm_ups: int = 1) -> dict[str, Any]:
    """`runs` turns for each contestant after `warm_ups` that do not count; every figure, and peak memory.

    A contestant whose environment is not there is left out and named, as is one that fails.
    """
    found: dict[str, Any] = {}
    living: dict[str, subprocess.Popen[str]] = {}

    def leave(name: str, error: Exception) -> None:
        found[name]["absent"] = str(error)
        living.pop(name, None)

    for contestant in contestants:
        name = contestant.name
        found[name] = {"note": contestant.note, "settings": contestant.settings, "runs": []}
        if not contestant.python.exists():
            found[name]["absent"] = "its environment is not there; run `make bench-setup`"
            continue
        living[name] = contestant.start()
        try:
            answer(living[name], name)
        except RuntimeError as error:
            leave(name, error)
    for turn in range(-warm_ups, runs):
        for name, process in list(living.items()):
            try:
                figures = _ask(process, name)
            except (RuntimeError, BrokenPipeError) as error:
                leave(name, error)
                continue
            if turn >= 0:
                found[name]["runs"].append(figures)
    for name, process in living.items():
        found[name] |= _end(process, name)
        found[name]["median"] = _medians(found[name]["runs"])
    return found


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} if runs else {}


def write(name: str, rows: dict[str, Any], *, device: str = "cpu") -> Path:
    """`benchmarks/results/NAME.json` with the machine and the versions, and its ratios on the screen."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"machine": describe_machine(device), "rows": rows}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)
    return path


def ratio(
    found: dict[str, Any], ours: str, peer: str, figure: str, *, less_is_better: bool = False
) -> float | None:
    """Ours over the peer's median `figure` (the inverse where less is better); None when either is absent."""
    try:
        a, b = (found[name]["median"][figure] for name in (ours, peer))
    except KeyError:
        return None
    return b / a if less_is_better else a / b
