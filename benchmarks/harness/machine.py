"""The machine a benchmark ran on, its libraries, and how fast it multiplies."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("posttrain", "torch", "transformers", "numpy")
PRODUCT = {"cpu": (1024, 576, 1536), "cuda": (8192, 8192, 8192)}
"""Rows, inner and outer size of the product that is timed: the 135M model's largest, and a GPU's large squares."""


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, memory, versions, and matrix-product rates (GFLOP/s) of the CPU and of `device`, taken now."""
    import torch

    gpu = {} if device == "cpu" else _describe_gpu(device)

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gib": round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "gflops": {
            str(dtype).removeprefix("torch."): matrix_rate(dtype) for dtype in (torch.bfloat16, torch.float32)
        },
    } | gpu


def _describe_gpu(device: str) -> dict[str, Any]:
    import torch

    return {
        "gpu_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "gpu_gflops": {"bfloat16": matrix_rate(torch.bfloat16, device=device)},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def synchronise(device: str) -> None:
    """Wait for all that a GPU was asked to do; a CPU has done it."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


def matrix_rate(dtype: Any, *, device: str = "cpu", seconds: float = 1.0) -> float:
    """GFLOP/s of `PRODUCT` on `device`: the best of a second's tries of ten."""
    import torch

    rows, inner, outer = PRODUCT[device]
    x = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(outer, inner, device=device).to(dtype)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(x, weight)
        synchronise(device)
        best = min(best, (time.perf_counter() - started) / 10)
    return round(2 * rows * inner * outer / best / 1e9, 1)
