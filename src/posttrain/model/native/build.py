"""The kernels' shared library: compiled on first use, kept in the cache, absent where there is no compiler."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from posttrain.model.cache import cache_dir

_SOURCES = ("elementwise.cpp", "attention.cpp", "attention_backward.cpp", "sampling.cpp", "draft.cpp")
_HEADERS = ("vector.h", "attention.h", "sampling.h")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-Wl,--as-needed",
)


LANES = 16
"""Numbers of a vector: rows are whole multiples of it."""

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "rms_norm_float32_bfloat16": (_P, _P, _P, _N, _N, _F),
    "rms_norm_bfloat16_bfloat16": (_P, _P, _P, _N, _N, _F),
    "rms_norm_backward_float32_bfloat16": (_P, _P, _P, _P, _P, _N, _N, _F),
    "rms_norm_backward_bfloat16_bfloat16": (_P, _P, _P, _P, _P, _N, _N, _F),
    "add_rms_norm_bfloat16": (_P, _P, _P, _P, _N, _N, _F),
    "swiglu_bfloat16": (_P, _P, _N, _P, _N, _N),
    "swiglu_backward_bfloat16": (_P, _P, _P, _P, _P, _N),
    "rotary_bfloat16": (_P, _N, _P, _P, _P, _N, _N, _N, _F),
    "log_softmax_bfloat16": (_P, _P, _P, _P, _N, _N, _F),
    "log_softmax_backward_bfloat16": (_P, _P, _P, _P, _N, _N, _F),
    "draw_bfloat16": (_P, _P, _P, _P, _N, _N, _F),
    "attend_segments": (*(_P, _N) * 3, *(_P,) * 6, _N, _N, _N, _N, _P, _P),
    "attend_segments_backward": (*(_P, _N) * 3, *(_P,) * 8, _N, _N, _N, _N, *(_P,) * 4),
    "attend_newest": (*(_P,) * 7, _N, _N, _N, _N, _N, _P),
    "draft_tokens": (*(_P,) * 10, _N, _N, _N, _P, _F, _F),
}
"""Each kernel's arguments: pointers, counts, numbers. The number of threads comes last and is put in by `call`."""


def call(name: str, *arguments: float) -> None:
    """Run the kernel `name` with as many threads as PyTorch uses."""
    _kernels()[name](*arguments, torch.get_num_threads())


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Any]:
    found = library()
    assert found is not None
    kernels = {name: getattr(found, name) for name in _ARGUMENTS}
    for name, kernel in kernels.items():
        kernel.argtypes, kernel.restype = (*_ARGUMENTS[name], ctypes.c_int), None
    return kernels


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None: POSTTRAIN_NATIVE=0, no compiler, or one that failed (`status` says which)."""
    return _found()[0]


def status() -> str:
    """Why the kernels are or are not in use, in a few words."""
    return _found()[1]


@lru_cache(maxsize=1)
def _found() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("POSTTRAIN_NATIVE", "1") == "0":
        return None, "switched off by POSTTRAIN_NATIVE=0"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None, "no C++ compiler found"
    openmp = next(iter((Path(torch.__file__).parent / "lib").glob("libgomp*")), None)
    if openmp is None:
        return None, "PyTorch's OpenMP is not GNU's"
    try:
        path = _compiled(compiler, openmp)
        return ctypes.CDLL(str(path)), f"compiled with {Path(compiler).name}"
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {error.stderr.strip().splitlines()[-1:] or ['no message']}"
    except OSError as error:
        return None, f"{compiler} could not be used: {error}"


def _compiled(compiler: str, openmp: Path) -> Path:
    """The library for these sources, flags, compiler and processor; two processes may build it at once."""
    here = Path(__file__).parent
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [(here / name).read_text(encoding="utf-8") for name in (*_HEADERS, *_SOURCES)]
    made_of = "\0".join([*parts, *_FLAGS, version, str(openmp), _processor()])
    folder = cache_dir() / "native"
    path = folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.so"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        writing = path.with_name(f"{path.stem}.{os.getpid()}.writing")
        # torch's own OpenMP, so that both share one pool of threads
        command = [
            compiler,
            *_FLAGS,
            *(str(here / name) for name in _SOURCES),
            "-o",
            str(writing),
            str(openmp),
        ]
        subprocess.run(command, capture_output=True, text=True, check=True)
        writing.replace(path)
    return path


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kinds)])
