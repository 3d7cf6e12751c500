"""The user's cache of converted models: built once, locked while it is built, checked when it is used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import ModelError
from posttrain.model.fingerprint import hash_file

if TYPE_CHECKING:
    from rich.console import Console


def cache_dir() -> Path:
    """Where converted models are kept: $POSTTRAIN_CACHE, else posttrain/ in the user's cache folder."""
    if own := os.environ.get("POSTTRAIN_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "posttrain"


def cached_model(name: str, build: Callable[[Path], None], *, console: Console | None = None) -> Path:
    """The folder models/`name` of the cache, built by `build(folder)` unless it is there and whole.

    Processes that want the same model at the same time wait for the first one. A folder whose files
    are not those that were built (truncated, edited, missing) is built again.
    """
    from filelock import FileLock, Timeout

    models = cache_dir() / "models"
    folder, manifest = models / name, models / f"{name}.manifest.json"
    if is_intact(folder, manifest):
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if console is not None:
                console.print(f"another process is preparing {name}; waiting for it", soft_wrap=True)
            lock.acquire()
    except PermissionError as error:
        raise ModelError(f"cannot write to {models}; name another folder in POSTTRAIN_CACHE") from error
    try:
        if not is_intact(folder, manifest):
            if manifest.exists() and console is not None:
                console.print(f"the cached copy of {name} is damaged; making it again", soft_wrap=True)
            _build(folder, manifest, build)
    finally:
        lock.release()
    return folder


def is_intact(folder: Path, manifest: Path) -> bool:
    """True when `folder` holds the files its manifest lists.

    A file whose size and modification time are as recorded is trusted; any other is hashed again.
    """
    try:
        files = json.loads(manifest.read_text())["files"]
        for name, recorded in files.items():
            status = (folder / name).stat()
            if status.st_size != recorded["bytes"]:
                return False
            if status.st_mtime_ns != recorded["mtime_ns"] and hash_file(folder / name) != recorded["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no manifest, or one that was cut short
    return bool(files)


def _build(folder: Path, manifest: Path, build: Callable[[Path], None]) -> None:
    """Build, then write the manifest: a kill in between leaves a folder that counts as absent."""
    manifest.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    build(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        status = path.stat()
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": hash_file(path)}
    writing = manifest.with_name(f"{manifest.name}.writing")
    writing.write_text(json.dumps({"files": files}, indent=1))
    writing.replace(manifest)
