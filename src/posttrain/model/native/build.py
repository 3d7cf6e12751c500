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

_SOURCES = (
    "elementwise.cpp",
    "attention.cpp",
    "attention_backward.cpp",
    "sampling.cpp",
    "product.cpp",
    "draft.cpp",
)
_HEADERS = ("vector.h", "attention.h", "newest.h", "sampling.h", "words.h")
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
"""Numbers of the widest vector: rows are whole multiples of it."""

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Number types that there are kernels for."""

_P, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "rms_norm": (_P, _P, _P, _N, _N, _F),
    "rms_norm_backward": (_P, _P, _P, _P, _P, _N, _N, _F),
    **dict.fromkeys(("multiply", "multiply_gated"), (_P, _P, _N, _N, _N, _N, _P)),
    "add_rms_norm": (_P, _P, _P, _P, _N, _N, _F),
    "swiglu": (_P, _P, _N, _P, _N, _N),
    "swiglu_backward": (_P, _P, _P, _P, _P, _N),
    "rotary": (_P, _N, _P, _P, _P, _N, _N, _N, _F),
    "log_softmax": (_P, _P, _P, _P, _N, _N, _F),
    "log_softmax_backward": (_P, _P, _P, _P, _N, _N, _F),
    "draw": (_P, _P, _P, _P, _N, _N, _F),
    "attend_segments": (*(_P, _N) * 3, *(_P,) * 6, _N, _N, _N, _N, _P, _P),
    "attend_segments_backward": (*(_P, _N) * 3, *(_P,) * 8, _N, _N, _N, _N, *(_P,) * 4),
    "attend_newest": (*(_P,) * 11, *(_N,) * 9, _P),
    "draft_tokens": (*(_P,) * 11, _N, _P, _N, _N, _N, _P, _F, _F),
}
"""Each kernel's arguments: pointers, counts, numbers. The number of threads comes last and is put in by `call`."""
_KINDS = {
    # what comes in and what goes out
    **dict.fromkeys(
        ("rms_norm", "rms_norm_backward"), ("float32_float32", "float32_bfloat16", "bfloat16_bfloat16")
    ),
}
"""Number types of each kernel; float32 and bfloat16 for those that are not here."""


def has(name: str, kind: str) -> bool:
    """Whether there is a kernel `name` for the number type `kind`: some need instructions of their own."""
    return library() is not None and bool(_symbol(f"{name}_{kind}", _P))


def call(name: str, kind: str, *arguments: float) -> None:
    """Run the kernel `name` for the number type `kind` with as many threads as PyTorch uses."""
    _kernels()[name, kind](*arguments, torch.get_num_threads())


@lru_cache(maxsize=1)
def _kernels() -> dict[tuple[str, str], Any]:
    kernels = {}
    for name, arguments in _ARGUMENTS.items():
        of = ctypes.CFUNCTYPE(None, *arguments, ctypes.c_int)
        for kind in _KINDS.get(name, tuple(KINDS.values())):
            kernels[name, kind] = of(_symbol(f"{name}_{kind}", _P) or 0)
    return kernels


@lru_cache(maxsize=1)
def lanes() -> int:
    """Numbers of this processor's vectors, and keys of a block of the cache."""
    return int(_symbol("lanes", ctypes.c_int))


def _symbol(name: str, kind: Any) -> Any:
    found = library()
    assert found is not None
    return kind.in_dll(found, name).value


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
        lines = error.stderr.strip().splitlines() or ["no message"]
        return None, f"{compiler} failed: {next((line for line in lines if 'error' in line), lines[-1])}"
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
