"""A benchmark's rows, read from the data folder: JSON lines, JSON, CSV or tab-separated, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_FIELD_CHARACTERS = 1 << 24
"""Longest CSV field; the csv module's own limit is 128 KiB, which some prompts pass."""


def read_data(data: Path, relative: str) -> list[dict[str, Any]]:
    """The rows of `data`/`relative`, in file order; a JSON object that is the whole file is one row.

    Read once and shared from then on: treat the rows as read-only. The file may also be there gzipped
    (`x.jsonl.gz` for `x.jsonl`) or unzipped. DataError, naming the file and what to do, when it is missing or
    malformed, or holds no rows.
    """
    path = find_data(data, relative)
    stat = path.stat()
    return list(_rows(path, stat.st_size, stat.st_mtime_ns))


def find_data(data: Path, relative: str) -> Path:
    """Where `relative` lies below `data`, gzipped or not. DataError when it is not there."""
    path = data / relative
    twin = path.with_name(path.name.removesuffix(".gz") if path.name.endswith(".gz") else f"{path.name}.gz")
    for candidate in (path, twin):
        if candidate.is_file():
            return candidate
    if not data.is_dir():
        raise DataError(f"there is no data folder {data}; give --data, or set POSTTRAIN_DATA to it")
    raise DataError(
        f"{relative} is not in the data folder {data}; put it there (docs/evaluation.md says where it is from)"
    )


def data_sha256(data: Path, relative: str) -> str:
    """Hex sha256 of the bytes that `read_data` reads, kept with every result. DataError when missing."""
    path = find_data(data, relative)
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def data_source(data: Path, relative: str) -> dict[str, Any] | None:
    """Where the hub's data came from that `read_data` reads: id, revision (a commit), sha256 of the files there.

    None for a file that is not there, not the hub's, or not as it was made from it.
    """
    try:
        record = read_record(find_data(data, relative))
    except DataError:
        return None
    return record and {name: record[name] for name in ("id", "revision", "files")}


def record_path(path: Path) -> Path:
    """Where it is written down what the data file at `path` was made of, if it was made."""
    return path.with_name(f"{path.name}.source.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """What the data file at `path` was made of; None when that is not known, or the file was changed since."""
    try:
        record = json.loads(record_path(path).read_bytes())
        is_whole = record["sha256"] == data_sha256(path.parent, path.name)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return record if is_whole else None


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _rows(path: Path, size: int, modified: int) -> tuple[dict[str, Any], ...]:
    """Cached by the file's size and time, so that a file that was replaced is read again."""
    text, kind = _text(path), path.name.removesuffix(".gz")
    if kind.endswith(".jsonl"):
        rows = _json_lines(path, text)
    elif kind.endswith(".json"):
        rows = _json(path, text)
    elif kind.endswith((".csv", ".tsv")):
        rows = _csv(path, text, delimiter="," if kind.endswith(".csv") else "\t")
    else:
        raise DataError(f"{path}: data files end in {', '.join(SUFFIXES)}, or these with .gz")
    if not rows:
        raise DataError(f"{path} has no rows; download it again")
    return tuple(rows)


def _text(path: Path) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        return content.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); download it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    # at newlines only: JSON text may hold U+2028, which splitlines() would cut at
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_row(_parsed(line, f"{path} line {number}"), f"{path} line {number}"))
    return rows


def _json(path: Path, text: str) -> list[dict[str, Any]]:
    value = _parsed(text, str(path))
    rows = value if isinstance(value, list) else [value]
    return [_row(row, f"{path} row {number}") for number, row in enumerate(rows, start=1)]


def _csv(path: Path, text: str, *, delimiter: str) -> list[dict[str, Any]]:
    limit = csv.field_size_limit(_FIELD_CHARACTERS)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: not valid CSV ({error}); download it again") from error
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise DataError(
                f"{path} row {number}: it has not as many fields as the header; download it again"
            )
    return rows


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not valid JSON ({error}); download the file again") from error


def _row(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row must be a JSON object, not {type(value).__name__}")
    return value
