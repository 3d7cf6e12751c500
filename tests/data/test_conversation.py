"""Rows in the forms that data sets have, and what is said of rows in none of them."""

from __future__ import annotations

import json

import pytest

from posttrain.data.conversation import (
    parse_conversation,
    parse_preference,
    parse_problem,
    read_conversations,
    read_preferences,
    read_problems,
)
from posttrain.data.sources import read_rows
from posttrain.errors import DataError
from posttrain.records import Conversation, Message, Preference, Problem

Q, A, B = Message("user", "Q"), Message("assistant", "A"), Message("assistant", "B")
QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
OTHER = {"role": "assistant", "content": "B"}


@pytest.fixture
def source(tmp_path):
    def write(*rows):
        path = tmp_path / "file.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return read_rows(str(path))

    return write


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER]},
        {"prompt": "Q", "completion": "A"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": "Q", "completion": [ANSWER]},
    ],
)
def test_conversations(row):
    row |= {"id": 7, "source": "mix"}
    assert parse_conversation(row, place="here") == Conversation("7", (Q, A), "mix")


def test_defaults_for_id_and_source():
    found = parse_conversation({"messages": [ANSWER]}, place="here", default_id="f:3", source="f")
    assert found == Conversation("f:3", (A,), "f")


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]},
        {"prompt": "Q", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, OTHER]},  # Tülu mixes
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [QUESTION], "chosen": "A", "rejected": "B"},
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER]},  # TRL
        {"prompt": "Q", "chosen": "A", "rejected": [OTHER], "score_chosen": 9.0},
    ],
)
def test_preferences(row):
    assert parse_preference(row, place="here", default_id="p") == Preference("p", (Q, A), (Q, B))


@pytest.mark.parametrize(
    ("row", "truth", "verifier"),
    [
        ({"messages": [QUESTION], "ground_truth": "42", "dataset": "gsm8k"}, "42", "gsm8k"),
        ({"messages": [QUESTION], "ground_truth": "42", "dataset": "MATH"}, "42", "math"),
        ({"messages": [QUESTION], "ground_truth": ["42", "43"], "dataset": "string"}, ["42", "43"], "string"),
        ({"messages": [QUESTION], "ground_truth": ["42"], "dataset": ["gsm8k"]}, "42", "gsm8k"),
        (
            {"prompt": [QUESTION], "data_source": "openai/gsm8k", "reward_model": {"ground_truth": "42"}},
            "42",
            "gsm8k",
        ),
        ({"prompt": "Q", "solution": "$42$"}, "$42$", "math"),
        ({"prompt": [QUESTION], "solution": "42", "dataset": "gsm8k"}, "42", "gsm8k"),
        ({"messages": [QUESTION], "ground_truth": 0, "dataset": "string"}, 0, "string"),
    ],
)
def test_problems(row, truth, verifier):
    assert parse_problem(row, place="here", default_id="p") == Problem("p", (Q,), truth, verifier)


def test_verifier_override():
    row = {"messages": [QUESTION], "ground_truth": "42", "dataset": "gsm8k"}
    assert parse_problem(row, place="here", verifier="string").verifier == "string"
    del row["dataset"]
    assert parse_problem(row, place="here", verifier="string").verifier == "string"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([QUESTION], (Q,)),
        ([QUESTION, ANSWER], (Q,)),
        ([QUESTION, ANSWER, QUESTION], (Q, A, Q)),  # the reference loses this question
        ([QUESTION, ANSWER, QUESTION, OTHER], (Q, A, Q)),
    ],
)
def test_only_a_closing_answer_is_no_prompt(messages, prompt):
    row = {"messages": messages, "ground_truth": "42", "dataset": "gsm8k"}
    assert parse_problem(row, place="here").messages == prompt


def test_none_says_nothing(tmp_path, chatml):
    """Closes T12: Parquet gives every message every key, as None; none of it reaches the rendered text."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"id": "a", "messages": [QUESTION | {"tool_calls": None}, ANSWER], "tools": None, "prompt": None},
        {"id": "b", "messages": [QUESTION | {"name": "Ann"}, ANSWER | {"weight": 1}], "prompt": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    read = list(read_rows(str(tmp_path / "t.parquet")))
    assert read[0].values["messages"][0]["name"] is None  # Arrow did add it
    for conversation in read_conversations(read_rows(str(tmp_path / "t.parquet"))):
        assert conversation.messages == (Q, A)
        assert "None" not in chatml.text(conversation.messages)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "needs the column 'messages', or 'prompt' and 'completion'; it has: text"),
        ({"messages": None, "a": 1}, "needs the column 'messages'"),
        ({"messages": []}, "'messages' must be a list of messages"),
        ({"messages": "hi"}, "'messages' must be a list of messages"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [QUESTION, {"role": "gpt", "content": "A"}]}, r"messages\[1\] has the role 'gpt'"),
        ({"messages": [{"content": "A"}]}, "has the role None"),
        ({"messages": [{"role": "user", "content": None}]}, "has no text in 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "has no text in 'content'"),
        ({"messages": [ANSWER | {"tool_calls": [{"f": 1}]}]}, "'tool_calls', which is not supported"),
        ({"messages": [ANSWER | {"reasoning_content": "hm"}]}, "'reasoning_content', which is not supported"),
        ({"messages": [QUESTION, ANSWER], "tools": [{"f": 1}]}, "has 'tools', which are not supported"),
    ],
)
def test_bad_conversations(source, row, said):
    with pytest.raises(DataError, match=f"^file.jsonl line 2: .*{said}"):
        read_conversations(source({"messages": [QUESTION, ANSWER]}, row))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "A"}, "needs the columns 'chosen' and 'rejected'"),
        ({"chosen": "A", "rejected": "B"}, "'chosen' is only a reply; add the column 'prompt'"),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen and rejected are equal"),
        (
            {"chosen": [QUESTION, ANSWER], "rejected": [{"role": "user", "content": "other"}, OTHER]},
            "differ before their last turn",
        ),
        ({"chosen": [QUESTION], "rejected": [QUESTION, OTHER]}, "'chosen' must end in an assistant turn"),
    ],
)
def test_bad_preferences(source, row, said):
    with pytest.raises(DataError, match=f"^file.jsonl line 2: .*{said}"):
        read_preferences(source({"prompt": "Q", "chosen": "A", "rejected": "B"}, row))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ground_truth": "1", "dataset": "gsm8k"}, "needs the column 'messages' or 'prompt'"),
        ({"messages": [QUESTION], "dataset": "gsm8k"}, "needs the column 'ground_truth'"),
        ({"messages": [QUESTION], "ground_truth": "1"}, "needs the column 'dataset' that names its verifier"),
        ({"messages": [ANSWER], "ground_truth": "1", "dataset": "x"}, "has an answer but no prompt"),
        ({"messages": [QUESTION], "ground_truth": ["1", "2"], "dataset": ["a", "b"]}, "names 2 verifiers"),
        ({"messages": [QUESTION], "ground_truth": "1", "dataset": 5}, "must be the name of a verifier"),
    ],
)
def test_bad_problems(source, row, said):
    with pytest.raises(DataError, match=f"^file.jsonl line 2: .*{said}"):
        read_problems(source({"messages": [QUESTION], "ground_truth": "1", "dataset": "gsm8k"}, row))


def test_ids_are_made_unique(source):
    """Part of T26: what is kept by row id must not be shared by two rows."""
    rows = [{"id": id, "prompt": "Q", "completion": "A"} for id in ("a", "a", "a#2", "b", "b#2", "b")]
    ids = [conversation.id for conversation in read_conversations(source(*rows))]
    assert ids[0] == "a" and ids[3] == "b" and ids[4] == "b#2" and len(set(ids)) == 6


def test_ids_without_an_id_column_are_places(source):
    row = {"prompt": "Q", "completion": "A"}
    assert [c.id for c in read_conversations(source(row, row))] == ["file.jsonl:1", "file.jsonl:2"]


def test_read_problems_with_verifier(source):
    found = read_problems(source({"prompt": "Q", "ground_truth": "1"}), verifier="string")
    assert [problem.verifier for problem in found] == ["string"]
