"""Tokenised rows kept on disk, under a key that covers everything that changes them.

Two files per key: the numbers (`.safetensors`) and their description (`.json`), which is written last, holds
the numbers' sha256, and so makes them valid. Anything missing, damaged or disagreeing is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from posttrain.data.mixture import MixtureRecord
from posttrain.data.render import Renderer, TrainOn
from posttrain.errors import DataError
from posttrain.model.cache import cache_dir
from posttrain.records import Dropped, Row

CODE_VERSION = 1
"""Raise this when the same inputs come to other tokens, masks, ids or drops than before."""


@dataclass(frozen=True, slots=True)
class TokenKey:
    """Everything that changes the tokens of a stage."""

    kind: Literal["rows", "pairs"]
    mixture: MixtureRecord
    """Names, content hashes, amounts and order of the sources, and the seed."""
    renderer: str
    """`Renderer.fingerprint`: the template and the tokenizer."""
    max_tokens: int
    train_on: TrainOn
    code_version: int = CODE_VERSION

    @property
    def digest(self) -> str:
        """sha256 of the key; the type of an amount counts (1 row is not 1.0 of the rows)."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Tokenised:
    """What tokenising gave. Pairs lie chosen first: `rows[2i]` and `rows[2i + 1]`."""

    rows: Sequence[Row]
    dropped: Dropped = field(default_factory=Dropped)
    num_escaped: int = 0
    """Special-token strings in the messages that were encoded as text."""

    @property
    def pairs(self) -> list[tuple[Row, Row]]:
        """The rows two by two."""
        return list(zip(self.rows[0::2], self.rows[1::2], strict=True))


def cache_folder() -> Path:
    """Where tokenised rows are kept: beside the models."""
    return cache_dir() / "tokenised"


def cached_rows(
    key: TokenKey, renderer: Renderer, build: Callable[[], tuple[list[Row], Dropped]]
) -> Tokenised:
    """The rows under `key`, from disk if they are there whole, else built and kept."""
    return _cached(key, renderer, build)


def cached_pairs(
    key: TokenKey, renderer: Renderer, build: Callable[[], tuple[list[tuple[Row, Row]], Dropped]]
) -> Tokenised:
    """The pairs under `key`, from disk if they are there whole, else built and kept."""

    def flat() -> tuple[list[Row], Dropped]:
        pairs, dropped = build()
        return [row for pair in pairs for row in pair], dropped

    return _cached(key, renderer, flat)


def _cached(key: TokenKey, renderer: Renderer, build: Callable[[], tuple[list[Row], Dropped]]) -> Tokenised:
    if key.renderer != renderer.fingerprint:
        raise ValueError("the key was made for another renderer than the one that builds the rows")
    stem = cache_folder() / key.digest
    found = _read(stem)
    if found is not None:
        return found
    escaped = renderer.num_escaped
    rows, dropped = build()
    built = Tokenised(rows, dropped, renderer.num_escaped - escaped)
    _write(stem, key, built)
    return built


def _write(stem: Path, key: TokenKey, tokenised: Tokenised) -> None:
    rows = tokenised.rows
    numbers = save(
        {
            "ids": np.fromiter((i for row in rows for i in row.ids), dtype=np.int32),
            "mask": np.packbits(np.fromiter((m for row in rows for m in row.mask), dtype=bool)),
            "lengths": np.array([len(row.ids) for row in rows], dtype=np.int64),
        }
    )
    description = {
        "key": asdict(key),
        "sha256": hashlib.sha256(numbers).hexdigest(),
        "row_ids": [row.id for row in rows],
        "dropped": {"counts": dict(tokenised.dropped.counts), "examples": list(tokenised.dropped.examples)},
        "num_escaped": tokenised.num_escaped,
    }
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        _replace(stem.with_suffix(".safetensors"), numbers)
        _replace(stem.with_suffix(".json"), json.dumps(description, indent=1).encode())
    except OSError as error:
        raise DataError(
            f"tokenised rows cannot be kept in {stem.parent} ({error.strerror or error}); "
            "set POSTTRAIN_CACHE to a folder that can be written"
        ) from error


def _replace(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: readers see the old file or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(stem: Path) -> Tokenised | None:
    """What is kept under `stem`, or None if it is not there or not whole."""
    try:
        numbers = stem.with_suffix(".safetensors").read_bytes()
        description: dict[str, Any] = json.loads(stem.with_suffix(".json").read_bytes())
        if hashlib.sha256(numbers).hexdigest() != description["sha256"]:
            return None
        arrays = load(numbers)
        ids, mask = arrays["ids"].tolist(), np.unpackbits(arrays["mask"]).astype(bool).tolist()
        rows, start = [], 0
        for name, length in zip(description["row_ids"], arrays["lengths"].tolist(), strict=True):
            rows.append(Row(name, tuple(ids[start : start + length]), tuple(mask[start : start + length])))
            start += length
        dropped = Dropped(description["dropped"]["counts"], tuple(description["dropped"]["examples"]))
        return Tokenised(rows, dropped, description["num_escaped"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
