"""Checkpoints: written whole or not at all, checked when read, the last one picked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.errors import CheckpointError
from posttrain.train.folder import writing

_STATE, _SEAL = "state.pt", "seal.json"


class Checkpoints:
    """A stage's `checkpoints/` folder.

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
        try:
            seal = json.loads((path / _SEAL).read_text())
            if _sha256(path / _STATE) != seal["sha256"]:
                raise ValueError("its content does not match its checksum")
            return step, torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            earlier = f"step {found[-2][0]}" if len(found) > 1 else "the stage's start"
            raise CheckpointError(
                f"the checkpoint {path} is damaged ({error}); delete it to go on from {earlier}"
            ) from error

    def save_if_due(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """Write `state()` when `step` (from 1) is a multiple of `every`."""
        if self.every is not None and step % self.every == 0:
            self.save(step, state())

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write `state` as the checkpoint after `step`; older ones beyond `keep` go."""
        final = self.folder / f"step_{step:06d}"
        partial = self.folder / f".partial-{step:06d}"
        with writing(final):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                with (partial / _STATE).open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                (partial / _SEAL).write_text(json.dumps({"step": step, "sha256": _sha256(partial / _STATE)}))
                shutil.rmtree(final, ignore_errors=True)
                partial.replace(final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        for _, path in self._found()[: -self.keep]:
            shutil.rmtree(path)

    def clear(self) -> None:
        """Remove all of them, partial ones too; the finished stage's model replaces them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[tuple[int, Path]]:
        return sorted((int(path.name.removeprefix("step_")), path) for path in self.folder.glob("step_*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
