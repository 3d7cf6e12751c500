"""Gathering: a recipe's sources as rows, refused in one sentence or recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from posttrain.config.parts import Source
from posttrain.data.gather import (
    describe,
    gather_conversations,
    gather_preferences,
    gather_problems,
    identity,
)
from posttrain.errors import DataError, RecipeError


@pytest.fixture
def write(tmp_path):
    def write_rows(rows: list[dict], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write_rows


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def conversations(count: int) -> list[dict]:
    return [{"id": f"c{i}", "messages": [turn("user", "?"), turn("assistant", str(i))]} for i in range(count)]


def problems(*names: str) -> list[dict]:
    return [
        {"id": f"p{i}", "messages": [turn("user", "?")], "ground_truth": "a", "dataset": name}
        for i, name in enumerate(names)
    ]


def test_sources_come_in_order_and_are_recorded(write):
    """By count, by fraction and repeated; the record has what was read, what was used, and the file's hash."""
    one, two = write(conversations(4), "one.jsonl"), write(conversations(10), "two.jsonl")
    sources = [Source(path=one, amount=1.5, name="first"), Source(path=two, amount=3)]
    rows, record = gather_conversations(sources, seed=1)
    assert [row.messages[1].content for row in rows[:4]] == ["0", "1", "2", "3"]
    assert len(rows) == 6 + 3
    first, second = describe(record)
    assert (first["name"], first["rows_read"], first["rows_used"]) == ("first", 4, 6)
    assert (second["name"], second["rows_read"], second["rows_used"]) == (two, 10, 3)
    assert first["sha256"] != second["sha256"]
    again, _ = gather_conversations(sources, seed=1)
    other, _ = gather_conversations(sources, seed=2)
    assert again == rows != other


def test_preferences(write):
    sides = {"chosen": [turn("assistant", "y")], "rejected": [turn("assistant", "n")]}
    path = write([{"id": "a", "prompt": "?"} | sides])
    rows, _ = gather_preferences([Source(path=path)], seed=1)
    assert rows[0].chosen[-1].content == "y" and rows[0].rejected[-1].content == "n"


def test_an_unknown_verifier_is_refused_by_name(write):
    """Whichever row it hides in; its neighbour's name is offered. Closes T52."""
    path = write(problems("string", "string", "gsm8kk"))
    with pytest.raises(RecipeError, match="there is no verifier 'gsm8kk'; did you mean 'gsm8k'"):
        gather_problems([Source(path=path)], seed=1)


def test_a_row_that_is_none_is_named(write):
    """File and line, in a DataError."""
    path = write([*conversations(2), {"text": "what is this"}])
    with pytest.raises(DataError, match=r"rows\.jsonl line 3"):
        gather_conversations([Source(path=path)], seed=1)
    with pytest.raises(DataError, match=r"rows\.jsonl line 1"):
        gather_problems([Source(path=path)], seed=1)


def test_no_file_and_no_rows_are_named(write, tmp_path):
    with pytest.raises(DataError, match=r"there is no data at .*nowhere\.jsonl"):
        gather_conversations([Source(path=str(tmp_path / "nowhere.jsonl"))], seed=1)
    with pytest.raises(DataError, match=r"rows\.jsonl has no rows"):
        gather_conversations([Source(path=write([]))], seed=1)


def test_a_home_folder_is_found(write, monkeypatch, tmp_path):
    write(conversations(2))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(gather_conversations([Source(path="~/rows.jsonl")], seed=1)[0]) == 2


def test_builtin_problems_are_not_conversations():
    for gather in (gather_conversations, gather_preferences):
        with pytest.raises(RecipeError, match="builtin:writing holds problems, not conversations"):
            gather([Source(builtin="writing")], seed=1)


def test_builtin_problems_by_count_and_fraction():
    """Seeded; a tenth is a tenth of what `all` gives; the splits share no prompt."""
    some, record = gather_problems([Source(builtin="writing", amount=12)], seed=1)
    assert len(some) == 12 == record.parts[0].rows_used
    assert gather_problems([Source(builtin="writing", amount=12)], seed=1)[0] == some
    assert gather_problems([Source(builtin="writing", amount=12)], seed=2)[0] != some
    everything, _ = gather_problems([Source(builtin="writing", split="heldout")], seed=1)
    tenth, _ = gather_problems([Source(builtin="writing", split="heldout", amount=0.1)], seed=1)
    assert len(tenth) == len(everything) // 10
    twice, record = gather_problems([Source(builtin="writing", split="heldout", amount=2.0)], seed=1)
    assert len(twice) == 2 * len(everything) == 2 * record.parts[0].rows_read
    held_out = {problem.messages[-1].content for problem in everything}
    assert not held_out & {problem.messages[-1].content for problem in some}


def test_identity_follows_the_content(write):
    """Same rows, same identity; one byte more, another; a hub id stands for itself and its revision."""
    path = write(conversations(2))
    before = identity(Source(path=path), seed=1)
    assert before == identity(Source(path=path, amount=1), seed=2)
    Path(path).write_text(Path(path).read_text() + json.dumps(conversations(1)[0]) + "\n")
    assert identity(Source(path=path), seed=1) != before
    assert identity(Source(hub="a/b", revision="c0ffee"), seed=1) == "a/b@c0ffee"
    writing = Source(builtin="writing", amount=3)
    assert identity(writing, seed=1) == identity(writing, seed=1) != identity(writing, seed=2)
    assert len(identity(writing, seed=1)) == len(hashlib.sha256().hexdigest())
