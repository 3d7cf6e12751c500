"""Folders that are either whole or absent, whatever kills the process that writes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    The new folder is written beside `path`, flushed to disk and renamed. A folder that is already at
    `path` is replaced as a whole; until the rename it stays as it was. One writer at a time: what an
    earlier, killed writer left beside `path` is removed first.
    """
    writing, replaced = path.parent / f".{path.name}.writing", path.parent / f".{path.name}.replaced"
    path.parent.mkdir(parents=True, exist_ok=True)
    if replaced.exists() and not path.exists():
        replaced.rename(path)  # killed between the two renames below: the old folder is the last whole one
    for left in (writing, replaced):
        shutil.rmtree(left, ignore_errors=True)
    writing.mkdir()
    try:
        yield writing
        _flush(writing)
        if path.exists():
            path.rename(replaced)
        writing.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Ask the system to put every file and folder under `folder`, and itself, on the disk."""
    for entry in sorted(folder.rglob("*")):
        _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
