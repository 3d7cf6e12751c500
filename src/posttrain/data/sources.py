"""Where rows come from: JSON lines, JSON, Parquet, a directory of these, or a hub data set.

Left out: Arrow folders written by `save_to_disk`, and streaming from the hub (it is downloaded whole).
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it was read, with where it was read."""

    place: str
    """For messages: `train.jsonl line 12`."""
    default_id: str
    """For rows without an id of their own: `train.jsonl:12`."""
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows that can be read again and again, with their identity."""

    name: str
    sha256: str
    """Of the file's bytes; of names and hashes for a directory; of the rows for a hub data set."""
    num_rows: int
    licence: str
    """As the hub or the directory's README.md states it; empty if unknown."""
    open: Callable[[], Iterator[SourceRow]] = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[SourceRow]:
        return self.open()


def read_rows(source: str, *, split: str = "train", revision: str | None = None) -> RowSource:
    """The rows of `source`: a file or directory if there is one of that name, else a hub id.

    In a directory, the files whose name starts with `split` are read (all of them, if no file is named after
    a split). `revision` is a hub commit, tag or branch. Raises DataError, naming what is missing or where the
    text is damaged; an empty source is refused too.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = _directory(source, path, split)
    elif path.exists():
        if split != "train":
            raise DataError(
                f"{source} is one file and has no split {split!r}; name the file that holds it instead"
            )
        digest, num_rows = _identify(path, path.name)
        found = RowSource(source, digest, num_rows, "", partial(_read_file, path, path.name))
    elif source.endswith(SUFFIXES) or not _HUB_ID.fullmatch(source):
        raise DataError(_missing(source, path))
    else:
        found = _hub(source, split, revision)
    if found.num_rows == 0:
        raise DataError(f"{source} has no rows; give a source that has some")
    return found


def _missing(source: str, path: Path) -> str:
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {folder / near[0]}?" if near else "check the path"
    return f"there is no file {source}; {hint}"


def _directory(source: str, path: Path, split: str) -> RowSource:
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if not files:
        raise DataError(f"{source} holds no data file; those read are {', '.join(SUFFIXES)}")
    named = {p: re.split(r"[-_.]", p.name.lower())[0] for p in files}
    if any(name in SPLITS for name in named.values()):
        chosen = [p for p in files if named[p] == split]
        if not chosen:
            there = ", ".join(sorted({name for name in named.values() if name in SPLITS}))
            raise DataError(f"{source} has no split {split!r}; it has: {there}")
        files = chosen
    digest, total = hashlib.sha256(), 0
    for file in files:
        name = file.relative_to(path).as_posix()
        sha256, num_rows = _identify(file, name)
        digest.update(f"{name}\0{sha256}\n".encode())
        total += num_rows

    def rows() -> Iterator[SourceRow]:
        for file in files:
            yield from _read_file(file, file.relative_to(path).as_posix())

    return RowSource(source, digest.hexdigest(), total, _readme_licence(path), rows)


def _readme_licence(path: Path) -> str:
    """The `license:` of the YAML block that opens the directory's README.md, as on the hub."""
    readme = path / "README.md"
    if not readme.is_file():
        return ""
    block = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    stated = re.search(r"^license:[ \t]*(\S.*?)[ \t]*$", block[1], re.MULTILINE) if block else None
    return stated[1].strip("'\"") if stated else ""


def _identify(path: Path, name: str) -> tuple[str, int]:
    """The sha256 of a file's bytes, and its rows."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if path.name.lower().endswith(".parquet"):
        return digest, int(_parquet(path, name).metadata.num_rows)
    if _is_array(path):
        return digest, sum(1 for _ in _read_file(path, name))
    return digest, sum(1 for _, line in _lines(path, name) if line.strip())


def _is_array(path: Path) -> bool:
    """True for a .json file that is one array; other .json files are read as JSON lines."""
    if not path.name.lower().endswith(".json"):
        return False
    with path.open("rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{name} is not a whole gzip file ({error}); download or compress it again"
        ) from error


def _read_file(path: Path, name: str) -> Iterator[SourceRow]:
    if path.name.lower().endswith(".parquet"):
        yield from _read_parquet(path, name)
    elif _is_array(path):
        try:
            rows = json.loads(path.read_bytes().decode("utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{name}: not valid JSON ({error})") from error
        for number, values in enumerate(rows, start=1):
            yield _row(values, f"{name} row {number}", f"{name}:{number}")
    else:
        for number, line in _lines(path, name):
            if not line.strip():
                continue
            place = f"{name} line {number}"
            try:
                values = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise DataError(f"{place}: not valid JSON ({error})") from error
            yield _row(values, place, f"{name}:{number}")


def _row(values: object, place: str, default_id: str) -> SourceRow:
    if not isinstance(values, dict):
        raise DataError(f"{place}: a row must be a JSON object, not {type(values).__name__}")
    return SourceRow(place, default_id, values)


def _parquet(path: Path, name: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{name} is not a whole Parquet file ({error}); download or write it again"
        ) from error


def _read_parquet(path: Path, name: str) -> Iterator[SourceRow]:
    number = 0
    for batch in _parquet(path, name).iter_batches(batch_size=1024):
        for values in batch.to_pylist():
            number += 1
            yield _row(values, f"{name} row {number}", f"{name}:{number}")


def _hub(source: str, split: str, revision: str | None) -> RowSource:
    import datasets

    try:
        loaded = datasets.load_dataset(source, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # Connection, 404 and offline errors are OSErrors here; a bad split or configuration is a ValueError.
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"there is no file {source!r}, and it could not be loaded from the hub ({reason}); "
            "check the name, the split and the network, or download it and give the folder"
        ) from error

    def rows() -> Iterator[SourceRow]:
        for number, values in enumerate(loaded, start=1):
            yield _row(dict(values), f"{source} row {number}", f"{source}:{number}")

    digest = hashlib.sha256()
    for row in rows():
        digest.update(json.dumps(row.values, sort_keys=True, default=str).encode())
    licence = loaded.info.license if loaded.info is not None else ""
    return RowSource(source, digest.hexdigest(), len(loaded), licence or "", rows)
