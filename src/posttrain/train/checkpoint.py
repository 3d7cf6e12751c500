"""Checkpoints: written whole or not at all, checked when read; to go on from, or to pick one of."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import CheckpointError
from posttrain.model.atomic import atomic_folder
from posttrain.train.folder import writing

_STATE, _SEAL = "state.pt", "seal.json"


class Checkpoints:
    """A stage's `checkpoints/` folder, or the one of the weights it keeps.

    `every` steps between checkpoints (None: none are written); the last `keep` are kept. A checkpoint is one
    file of tensors and plain values plus a seal with its sha256, in a folder that appears under its name only
    when both are on disk.
    """

    def __init__(self, folder: Path, *, every: int | None, keep: int = 2) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest checkpoint, or None when there is none.

        CheckpointError when it is damaged: falling back silently would hide a failing disk.
        """
        found = self._found()
        if not found:
            return None
        step, path = found[-1]
        earlier = f"step {found[-2][0]}" if len(found) > 1 else "the stage's start"
        return step, _read(path, f"delete it to go on from {earlier}")

    def load_step(self, step: int) -> dict[str, Any]:
        """State of the checkpoint after `step`; CheckpointError when it is missing or damaged."""
        return _read(self._path(step), f"delete {self.folder.parent} to train that stage again")

    def has(self, step: int) -> bool:
        """Whether there is a checkpoint after `step`."""
        return self._path(step).is_dir()

    def save_if_due(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Write `state()` when `step` (from 1) is a multiple of `every`."""
        if self.every is not None and step % self.every == 0:
            self.save(step, state())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write `state` as the checkpoint after `step`; older ones beyond `keep` go."""
        path = self._path(step)
        with writing(path):
            with atomic_folder(path) as folder:
                _write(state, folder / _STATE)
                (folder / _SEAL).write_text(json.dumps({"step": step, "sha256": _sha256(folder / _STATE)}))
            for _, old in self._found()[: -self.keep]:
                shutil.rmtree(old)

    def drop_others(self, step: int) -> None:
        """Remove all but the checkpoint after `step`."""
        for number, old in self._found():
            if number != step:
                shutil.rmtree(old)

    def clear(self) -> None:
        """Remove all of them, partial ones too; the finished stage's model replaces them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _found(self) -> list[tuple[int, Path]]:
        numbered = ((path.name.removeprefix("step_"), path) for path in self.folder.glob("step_*"))
        return sorted((int(number), path) for number, path in numbered if number.isdigit())


def _read(path: Path, remedy: str) -> dict[str, Any]:
    """The state in the checkpoint folder `path`, proved against its seal."""
    try:
        seal = json.loads((path / _SEAL).read_text())
        if _sha256(path / _STATE) != seal["sha256"]:
            raise ValueError("its content does not match its checksum")
        state: dict[str, Any] = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        return state
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}); {remedy}") from error


def _write(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # closing its archive, torch hides the disk's error behind one of its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
