"""A recipe's sources as rows: read, parsed, mixed, and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.parts import Source
from posttrain.data.conversation import read_conversations, read_preferences, read_problems
from posttrain.data.mixture import Item, MixtureRecord, Part, mix, num_wanted
from posttrain.data.sources import RowSource, read_rows
from posttrain.data.writing import count_available, kind_pools, writing_problems
from posttrain.errors import DataError, RecipeError
from posttrain.records import Conversation, Preference, Problem
from posttrain.rewards.verifier import find_verifier


def gather_conversations(sources: Sequence[Source], *, seed: int) -> tuple[list[Conversation], MixtureRecord]:
    """Conversations of all `sources`, in order; DataError names the file and line of a row that is none."""
    return mix([_part(source, read_conversations) for source in sources], seed=seed)


def gather_preferences(sources: Sequence[Source], *, seed: int) -> tuple[list[Preference], MixtureRecord]:
    """Preference pairs of all `sources`, in order."""
    return mix([_part(source, read_preferences) for source in sources], seed=seed)


def gather_problems(sources: Sequence[Source], *, seed: int) -> tuple[list[Problem], MixtureRecord]:
    """Problems of all `sources`, in order. RecipeError if one names a verifier that does not exist."""
    problems, record = mix([_problems_part(source, seed) for source in sources], seed=seed)
    for name in dict.fromkeys(problem.verifier for problem in problems):
        find_verifier(name)
    return problems, record


def _part(source: Source, parse: Callable[[RowSource], list[Item]]) -> Part[Item]:
    if source.builtin is not None:
        raise RecipeError(
            f"{source.place} holds problems, not conversations; use it under rejection or problems"
        )
    rows = _read(source)
    return Part(source.label, parse(rows), rows.sha256, source.amount, rows.licence)


def _problems_part(source: Source, seed: int) -> Part[Problem]:
    if source.builtin is None:
        return _part(source, read_problems)
    available = count_available(kind_pools(source.split))  # type: ignore[arg-type]
    wanted = max(1, num_wanted(source.amount, available))
    items = writing_problems(source.split, num=min(wanted, available), seed=seed)  # type: ignore[arg-type]
    return Part(source.label, items, _content(items), wanted, "Apache-2.0")


def _content(problems: Sequence[Problem]) -> str:
    """sha256 of generated problems, so that a change of their code shows like one of a file."""
    return hashlib.sha256("\n".join(map(repr, problems)).encode()).hexdigest()


def _read(source: Source) -> RowSource:
    if source.path is None:
        return read_rows(str(source.hub), split=source.split, revision=source.revision)
    if not Path(source.path).expanduser().exists():
        raise DataError(f"there is no data at {source.path}; check the path (it is relative to here)")
    return read_rows(str(Path(source.path).expanduser()), split=source.split)


def describe(record: MixtureRecord) -> list[dict[str, Any]]:
    """The sources of a mixture for `data.json`."""
    return [
        {
            "name": part.name,
            "rows_read": part.rows_read,
            "rows_used": part.rows_used,
            "sha256": part.sha256,
            "licence": part.licence,
        }
        for part in record.parts
    ]


def identity(source: Source, *, seed: int) -> str:
    """What decides the rows of `source`: the content's sha256, or a hub id and its revision."""
    if source.builtin is not None:
        return _problems_part(source, seed).sha256
    if source.path is not None:
        return _read(source).sha256
    return f"{source.hub}@{source.revision or 'newest'}"
