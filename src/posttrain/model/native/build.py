"""The kernels: which there are, for which numbers, and how one is called."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch

from posttrain.model.native.compile import TORCH, load

_SOURCES = (
    "elementwise.cpp",
    "attention.cpp",
    "attention_backward.cpp",
    "sampling.cpp",
    "product.cpp",
    "outer.cpp",
    "layers.cpp",
    "draft.cpp",
)
_HEADERS = ("vector.h", "attention.h", "newest.h", "norm.h", "product.h", "sampling.h", "tiles.h", "words.h")
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
    "lay": (_P, _N, _N, _P),
    "add_outer": (_P, _P, _N, _N, _N, _P),
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
    "run_layers": (*(_P,) * 16, *(_N,) * 6, _P, _F),
    "draft_tokens": (*(_P,) * 11, _N, _P, _N, _N, _N, _P, _F, _F),
}
"""Each kernel's arguments: pointers, counts, numbers. The number of threads comes last and is put in by `call`."""
_KINDS = {
    # what comes in and what goes out
    **dict.fromkeys(
        ("rms_norm", "rms_norm_backward"), ("float32_float32", "float32_bfloat16", "bfloat16_bfloat16")
    ),
    "lay": ("float32_bfloat16", "bfloat16_bfloat16"),
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


def at_once(dtype: torch.dtype) -> int:
    """Numbers that attention multiplies at once, in a word: two in bfloat16 where the processor can, else one."""
    return int(_symbol(f"at_once_{KINDS[dtype]}", ctypes.c_int64))


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
    # torch's own OpenMP, so that both share one pool of threads
    openmp = next(iter((TORCH / "lib").glob("libgomp*")), None)
    if openmp is None:
        return None, "PyTorch's OpenMP is not GNU's"
    return load(_SOURCES, headers=_HEADERS, flags=(*_FLAGS, str(openmp)))
