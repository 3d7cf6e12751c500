"""Evaluation: resumable at any sample, in order, with streams that depend on nothing but the problem."""

from __future__ import annotations

import io
import json
import random

import pytest
from rich.console import Console

from posttrain.config.parts import Source
from posttrain.errors import CheckpointError
from posttrain.evaluation.run import evaluate, evaluate_model
from posttrain.records import Message, Problem, Score
from posttrain.rewards.verifier import VERIFIERS, Verifier
from posttrain.rollout.open import open_engine
from posttrain.rollout.sampler import Sampling
from posttrain.train.progress import Progress

SAMPLING = Sampling(max_new_tokens=8)
KEYS = {
    "problem_id",
    "sample",
    "kind",
    "prompt",
    "output",
    "num_tokens",
    "stop_reason",
    "value",
    "verdict",
    "reason",
}


@pytest.fixture(scope="module")
def opened(tiny_llama_dir):
    return open_engine(str(tiny_llama_dir), compute_dtype="float32")


@pytest.fixture(autouse=True)
def even(monkeypatch):
    """A verifier: right when the reply has an even number of characters; it cannot read a "?"."""

    def check(completion, truth):
        if "?" in completion:
            raise ValueError("a question is no answer")
        return Score(1.0 if len(completion) % 2 == 0 else 0.0, "correct", f"gold {truth}")

    monkeypatch.setitem(VERIFIERS, "even", Verifier("even", check, (), ()))


def problems_of(num: int) -> list[Problem]:
    return [
        Problem(f"p{i}", (Message("user", f"Question {i} \u2028 \x85 数学"),), i, "even", f"kind {i % 2}")
        for i in range(num)
    ]


def run(opened, problems, out, *, samples=2, seed=5):
    """The rows, and the count that the progress bar ended with."""
    engine, renderer = opened
    with Progress(Console(file=io.StringIO())) as progress, progress.track("e", len(problems)) as track:
        rows = evaluate(
            engine,
            renderer,
            problems,
            sampling=SAMPLING,
            samples_per_problem=samples,
            seed=seed,
            out=out,
            track=track,
        )
    return rows, track.completed


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def whole(opened, tmp_path_factory):
    """Rows and file of an uninterrupted run over nine problems."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            VERIFIERS, "even", Verifier("even", lambda c, t: Score(float(len(c) % 2 == 0), "correct"), (), ())
        )
        out = tmp_path_factory.mktemp("eval") / "heldout.jsonl"
        rows, done = run(opened, problems_of(9), out)
    assert done == 9
    return rows, out.read_text(encoding="utf-8")


def said(rows):
    return [(row["problem_id"], row["sample"], row["output"], row["num_tokens"]) for row in rows]


def test_rows_come_in_the_order_of_the_problems(whole):
    rows, text = whole
    assert [(row["problem_id"], row["sample"]) for row in rows] == [
        (f"p{i}", s) for i in range(9) for s in (0, 1)
    ]
    assert all(set(row) == KEYS for row in rows)
    assert [row["kind"] for row in rows[:4]] == ["kind 0", "kind 0", "kind 1", "kind 1"]
    assert {row["stop_reason"] for row in rows} <= {"stop", "length"}
    written = [json.loads(line) for line in text.split("\n") if line]
    assert sorted(map(str, written)) == sorted(map(str, rows))


def test_samples_do_not_depend_on_the_other_problems(opened, whole, tmp_path):
    """Fewer, reordered, more samples: each (problem, sample) gets the same reply, so models can be compared."""
    expected = {(p, s): rest for p, s, *rest in said(whole[0])}
    some = problems_of(9)[2:8]
    random.Random(1).shuffle(some)
    rows, _ = run(opened, some, tmp_path / "some.jsonl", samples=3)
    assert [row["problem_id"] for row in rows[::3]] == [problem.id for problem in some]
    for problem_id, sample, *rest in said(rows):
        assert sample == 2 or expected[problem_id, sample] == rest


def test_another_seed_gives_other_replies(opened, whole, tmp_path):
    rows, _ = run(opened, problems_of(9), tmp_path / "other.jsonl", seed=6)
    assert said(rows) != said(whole[0])


@pytest.mark.parametrize("kept", [0.0, 0.31, 0.5, 0.77, 1.0])
def test_a_torn_file_is_completed(opened, whole, tmp_path, kept):
    """Cut at any byte, even inside a character: what is whole stays, the rest is sampled again. Closes T54."""
    rows, text = whole
    out = tmp_path / "heldout.jsonl"
    data = text.encode()
    out.write_bytes(data[: int(len(data) * kept)])
    before = [json.loads(line) for line in text[: int(len(text) * kept)].split("\n")[:-1]]
    found, done = run(opened, problems_of(9), out)
    assert said(found) == said(rows)
    assert done == 9
    assert sorted(said(lines_of(out))) == sorted(said(rows))
    assert len(lines_of(out)) == 18
    assert kept < 1 or len(before) == 18


def test_what_is_whole_is_not_sampled_again(opened, whole, tmp_path, monkeypatch):
    """Though prompts and replies hold U+2028 and U+0085, which end lines for some readers but not in JSON."""
    engine, _ = opened
    out = tmp_path / "heldout.jsonl"
    lines = whole[1].split("\n")[:-1]
    out.write_text("\n".join(lines[:-3]) + "\n" + lines[-3][:40], encoding="utf-8")
    submitted = []
    submit = engine.submit
    monkeypatch.setattr(
        engine, "submit", lambda request, sampling: submitted.append(1) or submit(request, sampling)
    )
    rows, _ = run(opened, problems_of(9), out)
    complete = [json.loads(line)["problem_id"] for line in lines[:-3]]
    assert len(submitted) == 9 - sum(complete.count(problem_id) == 2 for problem_id in set(complete))
    assert 0 < len(submitted) < 9
    assert said(rows) == said(whole[0])


def test_other_rows_in_the_file_do_not_get_in(opened, whole, tmp_path):
    """Rows of problems that are not asked for, of another number of samples, and what is no row at all."""
    out = tmp_path / "heldout.jsonl"
    lines = whole[1].split("\n")[:-1]
    first = [line for line in lines if '"p0"' in line]
    foreign = [json.dumps({"problem_id": "other", "sample": 0, "output": "x", "num_tokens": 1})]
    out.write_text(
        "\n".join([first[0], *foreign, "null", "[]", '{"sample": 1}', "", "\x00"]), encoding="utf-8"
    )
    rows, _ = run(opened, problems_of(9), out)
    assert said(rows) == said(whole[0])
    assert len(lines_of(out)) == 18


def test_a_kill_while_the_kept_rows_are_written_loses_none(opened, whole, tmp_path, monkeypatch):
    """The file is never shorter than what was kept. Closes T55."""
    engine, _ = opened
    out = tmp_path / "heldout.jsonl"
    lines = whole[1].split("\n")[:-1]
    out.write_text("\n".join(lines[:10]) + "\n", encoding="utf-8")
    seen = []
    step = engine.step

    def watching():
        seen.append(len(lines_of(out)))
        return step()

    monkeypatch.setattr(engine, "step", watching)
    run(opened, problems_of(9), out)
    kept = [json.loads(line)["problem_id"] for line in lines[:10]]
    assert min(seen) == sum(kept.count(problem_id) == 2 for problem_id in kept)


def test_a_check_that_raises_is_a_row_with_a_reason(opened, tmp_path, monkeypatch):
    """Closes T45."""
    calls = []

    def check(completion, truth):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise RuntimeError("broken")
        return Score(1.0, "correct")

    monkeypatch.setitem(VERIFIERS, "even", Verifier("even", check, (), ()))
    rows, _ = run(opened, problems_of(6), tmp_path / "o.jsonl")
    assert len(rows) == 12
    failed = [row for row in rows if row["verdict"] == "error"]
    assert len(failed) == 4
    assert all(row["value"] == 0 and "broken" in row["reason"] for row in failed)


def source_of(tmp_path, num=3) -> Source:
    path = tmp_path / "problems.jsonl"
    rows = [
        {
            "messages": [{"role": "user", "content": f"What is {i}?"}],
            "ground_truth": str(i),
            "dataset": "even",
        }
        for i in range(num)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def measure(model, source, out, **changed):
    settings = {
        "num_problems": None,
        "samples_per_problem": 2,
        "temperature": 1.0,
        "max_new_tokens": 5,
        "seed": 1,
    }
    return evaluate_model(
        str(model), source, **(settings | changed), out=out, console=Console(file=io.StringIO())
    )


def test_evaluate_model_by_hand(tiny_llama_dir, tmp_path, monkeypatch):
    """Problem i scores 1 on `i` of its two samples: means 0, 1/2, 1, so 1/2 with the error of three means."""
    seen: dict[str, int] = {}

    def check(completion, truth):
        seen[truth] = seen.get(truth, 0) + 1
        return Score(float(seen[truth] <= int(truth)), "correct")

    monkeypatch.setitem(VERIFIERS, "even", Verifier("even", check, (), ()))
    out = tmp_path / "new" / "out.jsonl"
    found = measure(tiny_llama_dir, source_of(tmp_path), out)
    assert found["mean_score"] == pytest.approx(0.5)
    assert found["stderr"] == pytest.approx((((0.5**2 + 0 + 0.5**2) / 2) / 3) ** 0.5)
    assert (found["n"], found["samples_per_problem"], found["out"]) == (3, 2, str(out))
    assert len(lines_of(out)) == 6


def test_evaluate_model_goes_on_where_it_was(tiny_llama_dir, tmp_path):
    """More problems than before is the same evaluation, further."""
    out, source = tmp_path / "out.jsonl", source_of(tmp_path, 5)
    measure(tiny_llama_dir, source, out, num_problems=2)
    first = lines_of(out)
    assert measure(tiny_llama_dir, source, out)["n"] == 5
    assert lines_of(out)[:4] == first
    assert len(lines_of(out)) == 10


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"temperature": 0.5}, "temperature"), ({"seed": 2}, "seed"), ({"max_new_tokens": 6}, "max_new_tokens")],
)
def test_another_evaluations_samples_are_not_taken_for_this_ones(tiny_llama_dir, tmp_path, changed, named):
    """Else a second `posttrain eval` would report the first one's score whatever it was asked."""
    out, source = tmp_path / "out.jsonl", source_of(tmp_path)
    measure(tiny_llama_dir, source, out)
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match=named):
        measure(tiny_llama_dir, source, out, **changed)
    assert out.read_bytes() == before


def test_another_models_samples_are_not_taken_for_this_ones(tiny_llama_dir, tiny_olmo2_dir, tmp_path):
    """The weights count, not the name: a folder that was trained further is another model. Closes T40."""
    out, source = tmp_path / "out.jsonl", source_of(tmp_path)
    measure(tiny_llama_dir, source, out)
    with pytest.raises(CheckpointError, match=r"model.*delete it or give another --out"):
        measure(tiny_olmo2_dir, source, out)


def test_a_file_that_is_no_evaluation_is_left_alone(tiny_llama_dir, tmp_path):
    source = source_of(tmp_path)
    before = (tmp_path / "problems.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="delete it"):
        measure(tiny_llama_dir, source, tmp_path / "problems.jsonl")
    assert (tmp_path / "problems.jsonl").read_bytes() == before
