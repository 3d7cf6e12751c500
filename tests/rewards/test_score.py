"""Scoring many rows and whole files: order, count and names."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from posttrain.errors import DataError, RecipeError
from posttrain.rewards import verifier as registry
from posttrain.rewards.pool import close_shared_pools, shared_pool
from posttrain.rewards.score import check_names, score_many
from posttrain.rewards.verifier import Verifier
from posttrain.rewards.verify_file import verify_file

sys.path.insert(0, str(Path(__file__).parent))
import crafted


@pytest.mark.parametrize("heavy", [False, True])
def test_a_check_that_throws_on_every_third_row_shifts_nothing(monkeypatch, heavy):
    """Closes T45, inline and in the pool."""
    thrower = Verifier("thrower", crafted.third_throws, (), (), heavy)
    monkeypatch.setitem(registry.VERIFIERS, "thrower", thrower)
    scores = score_many([("thrower", str(n), str(n - n % 2)) for n in range(100)])
    assert len(scores) == 100
    for n, score in enumerate(scores):
        expected = "error" if n % 3 == 2 else "correct" if n % 2 == 0 else "wrong"
        assert score.verdict == expected
        assert score.value == (expected == "correct")
        assert str(n) in score.reason


def test_light_and_heavy_rows_keep_their_places():
    """Closes T45 for rows of several verifiers."""
    rows = []
    for n in range(60):
        name = ("gsm8k", "math", "string", "format")[n % 4]
        truth = {"pattern": str(n)} if name == "format" else str(n)
        rows.append((name, str(n if n % 3 else n + 1), truth))
    assert [score.value for score in score_many(rows)] == [float(n % 3 != 0) for n in range(60)]


def test_pathological_answers_do_not_stall_the_step():
    """Closes T47: none needs its time-out, and the workers are the same afterwards."""
    shared_pool(1).run([(crafted.double, (1,))], timeout_seconds=60)
    before = shared_pool(1).process_ids()
    hostile = ["9^{9^{9^{9}}}", "(x+1)^{2000}", "(" * 300 + "1" + ")" * 300]
    rows = [
        ("math", f"\\boxed{{{answer}}}", truth) for answer in hostile for truth in ("9", "x", "\\sqrt{2}")
    ]
    verdicts = {score.verdict for score in score_many(rows, timeout_seconds=1.0, workers=1)}
    assert verdicts <= {"wrong", "unparseable"}  # "error" would be a time-out
    assert shared_pool(1).process_ids() == before


def test_a_check_that_returns_no_score_is_an_error(monkeypatch):
    monkeypatch.setitem(registry.VERIFIERS, "float", Verifier("float", lambda c, t: 1.0, (), ()))
    (score,) = score_many([("float", "a", "a")])
    assert (score.value, score.verdict) == (0.0, "error")


def test_a_name_that_no_verifier_has_is_refused_before_anything_runs():
    """Closes T52."""
    with pytest.raises(RecipeError, match="gsm8k"):
        check_names(["math", "gsm8"])
    with pytest.raises(RecipeError, match="there is no verifier"):
        score_many([("math", "1", "1"), ("nothing-like-it", "1", "1")])
    assert check_names(["math", "gsm8k", "string", "format", "ifeval"]) is None


def test_shared_pools_are_shared_until_closed():
    pool = shared_pool(1)
    assert shared_pool(1) is pool
    close_shared_pools()
    assert shared_pool(1) is not pool


GOOD = {"completion": "#### 5", "ground_truth": "5", "id": "a"}
LINES = [
    json.dumps(GOOD),
    "not json",
    json.dumps({**GOOD, "completion": "6"}),
    "[1, 2]",
    json.dumps({"completion": 5, "ground_truth": "5"}),
    json.dumps({"completion": "5"}),
    json.dumps({**GOOD, "ground_truth": "five"}),
    json.dumps({**GOOD, "completion": "none \ud800"}),
    json.dumps(GOOD),
]
EXPECTED = ["correct", "error", "wrong", "error", "error", "error", "error", "unparseable", "correct"]


@pytest.mark.parametrize(("source", "target"), [("in.jsonl", "out.jsonl"), ("in.jsonl.gz", "out.jsonl.gz")])
def test_a_file_keeps_order_and_count_whatever_its_rows_hold(tmp_path, source, target):
    """Closes T45 for files."""
    opener = gzip.open if source.endswith(".gz") else open
    with opener(tmp_path / source, "wb") as out:
        out.write("\n".join(LINES).encode() + b'\n\n{"completion": "\xff 5", "ground_truth": "5"}')
    summary = verify_file("gsm8k", tmp_path / source, tmp_path / target)
    with opener(tmp_path / target, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert [row["verdict"] for row in rows] == [*EXPECTED, "correct"]
    assert [row["value"] for row in rows] == [float(row["verdict"] == "correct") for row in rows]
    assert all(row["reason"] for row in rows)
    assert rows[0]["id"] == "a"
    assert rows[1]["line"] == "not json"
    assert summary.pop("seconds") > 0
    verdicts = {"correct": 3, "error": 5, "unparseable": 1, "wrong": 1}
    assert summary == {"n": 10, "mean": 0.3, "verdicts": verdicts}


def test_an_empty_file_has_no_mean_to_speak_of(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    summary = verify_file("gsm8k", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (summary["n"], summary["mean"], summary["verdicts"]) == (0, 0.0, {})


def test_files_and_names_that_cannot_be_used_are_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(LINES[0])
    with pytest.raises(DataError, match="not a file"):
        verify_file("gsm8k", tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="is the input file"):
        verify_file("gsm8k", source, source)
    with pytest.raises(RecipeError, match="gsm8k"):
        verify_file("gsm8", source, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="cannot be verified"):
        verify_file("gsm8k", source, tmp_path / "no" / "folder" / "out.jsonl")
    assert source.read_text() == LINES[0]
    assert not (tmp_path / "out.jsonl").exists()
