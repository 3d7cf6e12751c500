"""Benchmark data from the Hugging Face hub: fetched at a commit, converted once, laid out as the data folder is.

Converted files are kept in the cache, `benchmarks/OWNER--NAME/COMMIT/`, each with a record of what it was made of
(`.source.json`, written last, which makes it valid). What a run reads is a folder of links to them, so that tasks
cannot tell it from a data folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from posttrain.errors import CheckpointError, DataError
from posttrain.evaluation.datafile import find_data, read_data, read_record, record_path
from posttrain.evaluation.hub_rows import Place
from posttrain.evaluation.hub_table import ABSENT, EXEMPLARS, HUB, HubSource
from posttrain.evaluation.task import Task
from posttrain.model.cache import cache_dir
from posttrain.model.fingerprint import hash_file
from posttrain.train.folder import write_json, write_text

WORD = "hub"
"""What is said in the place of a data folder; `./hub` is a folder of that name."""
CODE_VERSION = 1
"""Raise this when the same files of the hub come to other rows than before."""

Say = Callable[[str], None]
_INSTEAD = "or give a data folder with --data"


def open_data(choice: str | None, tasks: Sequence[Task], say: Say, *, prompts: bool = True) -> Path:
    """The folder to read the data of `tasks` from; what comes from the hub is said, a line a file.

    `choice` is a data folder, which is taken as it is; `hub`, or nothing; or `hub:FOLDER`, which reads from FOLDER
    what is on no hub, such as exemplars, and nothing else. Without `prompts` no exemplars are needed. DataError
    says what is missing or could not be had.
    """
    if choice is None or choice == WORD:
        return _hub_folder(tasks, None, say, prompts)
    if choice.startswith(f"{WORD}:"):
        return _hub_folder(tasks, Path(choice.removeprefix(f"{WORD}:")).expanduser(), say, prompts)
    return Path(choice)


def _hub_folder(tasks: Sequence[Task], beside: Path | None, say: Say, prompts: bool) -> Path:
    """A folder with the data of `tasks`: from the hub what `HUB` has, from `beside` the rest.

    Nothing is fetched when something is on neither.
    """
    needed = {task.name: _needed(task, prompts) for task in tasks}
    files = list(dict.fromkeys(relative for each in needed.values() for relative in each))
    own = {relative: find_data(beside, relative) for relative in files if relative not in HUB and beside}
    if absent := [text for name, each in needed.items() if (text := _absent(name, each, own))]:
        others = f" (and {len(absent) - 1} more tasks lack data)" if len(absent) > 1 else ""
        raise DataError(f"{absent[0]}{others}")
    links = {}
    for relative in files:
        path = own[relative].absolute() if relative in own else _converted(relative, HUB[relative], say)
        links[str(PurePosixPath(relative).with_name(path.name))] = path
        if relative not in own:
            links[str(PurePosixPath(relative).with_name(record_path(path).name))] = record_path(path)
    return _linked(links)


def _needed(task: Task, prompts: bool) -> list[str]:
    return [relative for relative in task.needs.files if prompts or relative not in EXEMPLARS]


def _absent(name: str, files: Sequence[str], own: Mapping[str, Path]) -> str:
    """What keeps the task called `name` from being read, in a sentence; empty when nothing does."""
    for relative in files:
        if relative not in HUB and relative not in own:
            reason = ABSENT.get(relative, "no hub data set is known for it")
            return (
                f"{name} needs {relative}, and {reason}; give --data hub:FOLDER with a folder that has it, "
                "or a whole data folder: --data FOLDER, or set POSTTRAIN_DATA to it"
            )
    return ""


def _converted(relative: str, source: HubSource, say: Say) -> Path:
    """The file `relative` in the cache, made now unless it is there whole."""
    found, commit = [], source.revision
    if commit is None or not _is_kept(_kept(relative, source, commit), source):
        for file in source.files:  # all at the commit of the first, should the newest change meanwhile
            path, commit = _fetch(source.id, file, commit)
            found.append(path)
    assert commit is not None
    kept = _kept(relative, source, commit)
    if found and not _is_kept(kept, source):
        _convert(kept, source, commit, found)
    files = source.files if len(source.files) == 1 else (source.files[0], "...", source.files[-1])
    say(f"{relative}: {source.id} at {commit}, {' '.join(files)}")
    return kept


def _kept(relative: str, source: HubSource, commit: str) -> Path:
    name = relative.removesuffix(".gz")
    return cache_dir() / "benchmarks" / source.id.replace("/", "--") / commit / name


def _is_kept(path: Path, source: HubSource) -> bool:
    """Whether the cache has the file, made of these files by this code, and as it was made."""
    record = read_record(path)
    return (
        record is not None
        and record.get("code_version") == CODE_VERSION
        and list(record.get("files", ())) == list(source.files)
        and record.get("rows") == source.num_rows
    )


def _fetch(name: str, file: str, revision: str | None) -> tuple[Path, str]:
    """A file of a data set, in the hub's own cache, and its commit."""
    from huggingface_hub import errors, hf_hub_download

    at = f"{name} at {revision or 'its newest commit'}"
    try:
        path = Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except errors.GatedRepoError as error:
        raise DataError(
            f"{name} is gated: accept its terms on its hub page and run `hf auth login`, {_INSTEAD}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"the hub has no {at}; give a data folder with --data") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(f"the hub has no data set {name}; give a data folder with --data") from error
    except errors.RemoteEntryNotFoundError as error:
        raise DataError(f"there is no {file} in {at}; give a data folder with --data") from error
    except (OSError, errors.HFValidationError) as error:  # no network, offline mode, an HTTP error
        reason = type(error.__cause__ or error).__name__
        raise DataError(
            f"{file} of {at} is not in the hub's cache, and the hub could not give it ({reason}); "
            f"check the network and HF_HUB_OFFLINE, {_INSTEAD}"
        ) from error
    # .../snapshots/COMMIT/FILE
    return path, path.parents[len(PurePosixPath(file).parts) - 1].name


def _convert(kept: Path, source: HubSource, commit: str, found: Sequence[Path]) -> None:
    """Write `kept` from the files `found` in the hub's cache, then its record."""
    rows: list[dict[str, Any]] = []
    for file, path in zip(source.files, found, strict=True):
        rows += _rows(path, f"{source.id}/{file}", source, file)
    if len(rows) != source.num_rows:
        raise DataError(
            f"{source.id} at {commit} has {len(rows):,} rows, and the benchmark has {source.num_rows:,}; these are "
            "not the published data: empty the hub's cache, or give a data folder with --data"
        )
    if source.convert is None:
        text = found[0].read_bytes().decode()
    elif kept.suffix == ".json":
        text = json.dumps(rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    record = {
        "id": source.id,
        "revision": commit,
        "files": {file: hash_file(path) for file, path in zip(source.files, found, strict=True)},
        "rows": len(rows),
        "code_version": CODE_VERSION,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    try:
        write_text(kept, text)
        write_json(record_path(kept), record)
    except CheckpointError as error:
        raise DataError(f"{error} (POSTTRAIN_CACHE names the cache's)") from error


def _rows(path: Path, place: str, source: HubSource, file: str) -> list[dict[str, Any]]:
    """The rows of one fetched file, converted; DataError names the columns or the row that is wrong."""
    rows = _parquet(path, place) if path.suffix == ".parquet" else read_data(path.parent, path.name)
    for number, row in enumerate(rows, start=1):
        if not row.keys() >= set(source.columns):
            raise DataError(
                f"{place} row {number}: the columns {', '.join(source.columns)} are expected, and there are "
                f"{', '.join(map(str, row))}; the data set has changed: give a data folder with --data"
            )
    if source.convert is None:
        return rows
    converted = []
    for index, row in enumerate(rows):
        try:
            converted.append(source.convert(row, Place(file, index)))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{place} row {index + 1} is not as documented ({type(error).__name__}: {error}); "
                "the data set has changed: give a data folder with --data"
            ) from error
    return converted


def _parquet(path: Path, place: str) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{place} is not a whole Parquet file ({reason}); delete it from the hub's cache: {path}"
        ) from error
    return rows


def _linked(links: dict[str, Path]) -> Path:
    """A folder of these links, named after what it holds: processes that want the same one may all make it."""
    name = hashlib.sha256(json.dumps({key: str(path) for key, path in sorted(links.items())}).encode())
    folder = cache_dir() / "benchmarks" / "folders" / name.hexdigest()[:16]
    try:
        for relative, path in links.items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.symlink(path, folder / relative)
            except FileExistsError:
                continue
    except OSError as error:
        raise DataError(
            f"cannot write to {folder} ({error.strerror or error}); name another folder in POSTTRAIN_CACHE"
        ) from error
    return folder
