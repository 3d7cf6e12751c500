"""A hub cache in a temporary folder, laid out as huggingface_hub's own, which then reads it without a network.

datasets--OWNER--NAME/refs/main                     the newest commit
datasets--OWNER--NAME/snapshots/COMMIT/PATH         a file
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

Rows = Sequence[Mapping[str, Any]]


def put(
    cache: Path, name: str, commit: str, file: str, content: bytes | Rows, *, newest: bool = False
) -> Path:
    """Place a file: bytes as they are, rows in the format that the file's name says."""
    repository = cache / f"datasets--{name.replace('/', '--')}"
    path = repository / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist([*content]), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([*content]))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    if newest:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
    return path
