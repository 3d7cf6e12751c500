"""The run folder: what lies where, written so that `kill -9` leaves the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class StageFolder:
    """One stage's files inside a run."""

    root: Path

    @property
    def name(self) -> str:
        """The folder's own name, such as `01-sft`."""
        return self.root.name

    @property
    def metrics(self) -> Path:
        """One JSON line per optimizer step."""
        return self.root / "metrics.jsonl"

    @property
    def measured(self) -> Path:
        """One JSON line per step that was measured while the stage trained."""
        return self.root / "measured.jsonl"

    def samples_at(self, step: int) -> Path:
        """One JSON line per sample of the measurement after `step`."""
        return self.root / "eval" / f"step_{step:06d}.jsonl"

    def benchmarks_at(self, step: int) -> Path:
        """The results folder of the benchmarks that were run after `step`."""
        return self.root / "eval" / f"step_{step:06d}"

    @property
    def kept(self) -> Path:
        """Which step's weights are the stage's result, and of which candidates."""
        return self.root / "kept.json"

    @property
    def kept_weights(self) -> Path:
        """A folder of the weights that are the result so far; gone when the model is written."""
        return self.root / "kept"

    @property
    def data(self) -> Path:
        """Counts of rows, tokens and targets, and what was dropped."""
        return self.root / "data.json"

    @property
    def rollouts(self) -> Path:
        """A folder of Parquet files."""
        return self.root / "rollouts"

    @property
    def heldout(self) -> Path:
        """One JSON line per evaluated sample."""
        return self.root / "eval" / "heldout.jsonl"

    @property
    def model(self) -> Path:
        """The stage's result, a folder that Hugging Face loads."""
        return self.root / "model"

    @property
    def adapter(self) -> Path:
        """The stage's adapters, if it trained any, in a folder that peft loads."""
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        """A folder of checkpoint folders."""
        return self.root / "checkpoints"

    @property
    def done(self) -> Path:
        """Present when the stage finished."""
        return self.root / "done.json"

    def prepare(self) -> None:
        """Make the stage's folders. CheckpointError when that is impossible."""
        with writing(self.root):
            for folder in (self.root, self.rollouts, self.heldout.parent, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)

    def is_done(self, key: str) -> bool:
        """True when this stage finished with exactly the inputs that `key` stands for."""
        return self.done.is_file() and read_json(self.done).get("key") == key

    def finish(self, key: str, *, seconds: float, warnings: Sequence[str] = ()) -> None:
        """Write `done.json`: the last thing a stage does."""
        write_json(
            self.done,
            {
                "key": key,
                "seconds": round(seconds, 3),
                "peak_rss_gib": round(peak_rss_gib(), 3),
                "warnings": list(warnings),
            },
        )


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's files."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def manifest(self) -> Path:
        """Versions, machine, seed and stage keys."""
        return self.root / "manifest.json"

    @property
    def summary(self) -> Path:
        """Scores per stage and the gain."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The page to read."""
        return self.root / "report.html"

    @property
    def model(self) -> Path:
        """The final model, a folder that Hugging Face loads."""
        return self.root / "model"

    @property
    def stages(self) -> Path:
        """The folder of stage folders."""
        return self.root / "stages"

    def stage(self, index: int, name: str) -> StageFolder:
        """Stage number `index`; 0 is the base model before training."""
        return StageFolder(self.stages / f"{index:02d}-{name}")

    def prepare(self) -> None:
        """Make the folder and prove that it can be written. CheckpointError when it cannot."""
        with writing(self.root):
            self.stages.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe."""
        write_text(self.recipe, text)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest (see `train.manifest.describe_run`)."""
        write_json(self.manifest, manifest)


def stage_key(parts: Mapping[str, Any]) -> str:
    """Hex sha256 over the canonical JSON of everything that decides a stage's result.

    Key order does not matter; a value that JSON cannot hold, NaN included, raises TypeError or ValueError.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN and infinities raise ValueError: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object that `path` holds. CheckpointError when it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; the run folder is incomplete") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (no JSON object); delete it and run again")
    return value


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically: temporary file beside it, fsync, rename, fsync of the folder.

    Text that UTF-8 cannot hold (lone surrogates) is written with '?'. CheckpointError when the disk is full
    or the folder cannot be written; the old file is then intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into a CheckpointError of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise CheckpointError(
                f"the disk is full: cannot write {path}; free some space and run again, "
                "what is finished is kept"
            ) from error
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to"
        ) from error


def peak_rss_gib() -> float:
    """Largest resident memory this process has had so far, in GiB; child processes are not counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
