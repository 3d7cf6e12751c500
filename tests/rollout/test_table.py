"""Rollouts through Parquet and back: every id, number and character."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from posttrain.errors import CheckpointError
from posttrain.records import Completion, Group, Message, Problem, Rollout, Score
from posttrain.rollout.table import read_rollouts, write_rollouts

NESTED = {"instructions": [{"id": "a:b", "kwargs": {"n": 3, "words": ["ä", None], "ratio": 0.5}}], "ok": True}


def group_of(number: int, truth, text: str = "An answer", samples: int = 2) -> Group:
    messages = (Message("system", "Be brief."), Message("user", f"Question {number}? 数学 \u2028 🙂"))
    problem = Problem(f"p{number}", messages, truth, "gsm8k", "some source")
    logprobs = tuple(float(np.float32(value)) for value in (-0.1, -2.5e-7, -17.25))
    rollouts = tuple(
        Rollout(
            problem,
            (1, 50_000 + number, 7),
            Completion(
                (3, 2**31 - 1, sample), logprobs, ("stop", "length", "cancelled")[sample % 3], text, 12
            ),
            Score(1 / 3, "wrong", "because", {"first": 0.1, "second": 1.0}),
            reward=10 / 3 - sample,
        )
        for sample in range(samples)
    )
    return Group(problem, rollouts)


GROUPS = [
    group_of(0, "42"),
    group_of(1, NESTED, text="Zwölf Boxkämpfer\n\t\x00 jagen 🙂 \u2028 Viktor"),
    group_of(2, ["a", ["b", [1, 2.5, None]]], text="", samples=3),
    group_of(3, None),
]


def test_everything_comes_back(tmp_path):
    """Ids and log-probabilities to the last bit: a resumed step trains on these. Closes T41, T54."""
    path = tmp_path / "new folder" / "step_000003.parquet"
    write_rollouts(path, GROUPS, step=3)
    assert read_rollouts(path) == GROUPS
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_open_file_will_do():
    buffer = io.BytesIO()
    write_rollouts(buffer, GROUPS, step=1)
    buffer.seek(0)
    assert read_rollouts(buffer) == GROUPS


def test_no_groups_at_all(tmp_path):
    write_rollouts(tmp_path / "none.parquet", [], step=0)
    assert read_rollouts(tmp_path / "none.parquet") == []


def test_the_same_problem_twice_stays_two_groups(tmp_path):
    """A step may draw a problem twice; its groups have their own baselines. Closes T35."""
    twice = [GROUPS[0], GROUPS[0], GROUPS[1]]
    write_rollouts(tmp_path / "t.parquet", twice, step=1)
    assert read_rollouts(tmp_path / "t.parquet") == twice


def test_columns_for_readers(tmp_path):
    """One row a rollout, with the step, places, the words, and the advantage; none where there was no training."""
    path = tmp_path / "t.parquet"
    write_rollouts(path, GROUPS[:2], step=7, advantages=[[0.5, -0.5], [None, 0.25]])
    rows = pq.read_table(path).to_pylist()
    assert [(row["step"], row["place"], row["sample"]) for row in rows] == [
        (7, 0, 0),
        (7, 0, 1),
        (7, 1, 0),
        (7, 1, 1),
    ]
    assert [row["advantage"] for row in rows] == [0.5, -0.5, None, 0.25]
    assert rows[0]["prompt"] == GROUPS[0].problem.messages[-1].content
    assert rows[2]["completion"] == GROUPS[1].rollouts[0].completion.text
    assert rows[0]["reward"] == 10 / 3
    assert (rows[0]["value"], rows[0]["verdict"], rows[0]["reason"]) == (1 / 3, "wrong", "because")
    assert rows[0]["stop_reason"] == "stop"
    assert rows[0]["weights_version"] == 12


def test_half_a_surrogate_pair_does_not_end_the_run(tmp_path):
    """JSON data may hold one; Parquet text may not. The prompt that is trained on keeps it."""
    messages = (Message("user", "broken \ud83d here"),)
    problem = Problem("p", messages, {"key": "\udc00"}, "string")
    completion = Completion((4,), (-1.0,), "stop", "answer \ud83d")
    rollout = Rollout(problem, (1,), completion, Score(0.0, "wrong", "saw \ud83d"), 0.0)
    write_rollouts(tmp_path / "t.parquet", [Group(problem, (rollout,))], step=1)
    (found,) = read_rollouts(tmp_path / "t.parquet")
    assert found.problem == problem
    assert found.rollouts[0].completion.ids == (4,)
    assert found.rollouts[0].completion.text == "answer ?"
    assert pq.read_table(tmp_path / "t.parquet")["prompt"].to_pylist() == ["broken ? here"]


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_a_damaged_file_is_named(tmp_path, cut):
    """Closes T55."""
    path = tmp_path / "t.parquet"
    write_rollouts(path, GROUPS, step=1)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"t\.parquet is damaged"):
        read_rollouts(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """What cannot be written is noticed before the old file is touched. Closes T55."""
    path = tmp_path / "t.parquet"
    write_rollouts(path, GROUPS[:1], step=1)
    bad = Problem("p", (Message("user", "?"),), object(), "string")
    rollout = Rollout(bad, (1,), Completion((4,), (-1.0,), "stop", ""), Score(0.0, "wrong"), 0.0)
    with pytest.raises(TypeError):
        write_rollouts(path, [Group(bad, (rollout,))], step=2)
    assert read_rollouts(path) == GROUPS[:1]
