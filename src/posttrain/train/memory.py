"""Memory between stages."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc


def give_back() -> None:
    """Collect what the last stage left and return freed pages to the system.

    glibc keeps freed blocks of a few megabytes for later, and a stage's are of other sizes than the next one's;
    without this each stage adds about a gigabyte to the process. Elsewhere only the collection is done.
    """
    gc.collect()
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
