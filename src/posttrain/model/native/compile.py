"""C++ sources into a shared library: compiled on first use, kept in the cache, absent where there is no compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from posttrain.model.cache import cache_dir

TORCH = Path(torch.__file__).parent
"""Where PyTorch's headers (`include`) and libraries (`lib`) are."""


def load(
    sources: Sequence[str], *, headers: Sequence[str], flags: Sequence[str]
) -> tuple[ctypes.CDLL | None, str]:
    """The library of `sources`, or None, and why, in a few words: POSTTRAIN_NATIVE=0, no compiler, or one that failed.

    sources and headers are files of this folder; flags come after the sources, so libraries to link may be among them.
    """
    if os.environ.get("POSTTRAIN_NATIVE", "1") == "0":
        return None, "switched off by POSTTRAIN_NATIVE=0"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "no C++ compiler found"
    try:
        path = _compiled(compiler, sources, headers, flags)
        return ctypes.CDLL(str(path)), f"compiled with {Path(compiler).name}"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        return None, f"{compiler} failed: {next((line for line in lines if 'error' in line), lines[-1])}"
    except OSError as error:
        return None, f"{compiler} could not be used: {error}"


def _compiled(compiler: str, sources: Sequence[str], headers: Sequence[str], flags: Sequence[str]) -> Path:
    """The library for these sources, flags, compiler, PyTorch and processor; two processes may build it at once."""
    here = Path(__file__).parent
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [(here / name).read_text(encoding="utf-8") for name in (*headers, *sources)]
    made_of = "\0".join([*parts, *flags, version, torch.__version__, _processor()])
    folder = cache_dir() / "native"
    path = folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        writing = path.with_name(f"{path.stem}.{os.getpid()}.writing")
        command = [compiler, *(str(here / name) for name in sources), "-o", str(writing), *flags]
        subprocess.run(command, capture_output=True, text=True, check=True)
        writing.replace(path)
    return path


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kinds)])
