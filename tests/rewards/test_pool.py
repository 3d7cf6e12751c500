"""The process pool: limits that hold, from wherever it is used, and nothing left behind."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.rewards.pool import Pool, shared_pool

sys.path.insert(0, str(Path(__file__).parent))
import crafted

ROWS = [
    ("math", "\\boxed{(x+1)^2}", "x^2+2x+1"),
    ("math", "\\boxed{\\infty}", "∞"),
    ("math", "\\boxed{5,7}", "5"),
    ("format", "a" * 40 + "!", {"pattern": "(a+)+"}),
    ("gsm8k", "#### 18", "18"),
    ("gsm8k", "#### -18", "18"),
    ("math", "\\boxed{3}", ""),
]
VALUES = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
VERDICTS = ["correct", "correct", "wrong", "error", "correct", "wrong", "error"]


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(2)
    yield pool
    pool.close()


def score_all() -> tuple[list[float], list[str]]:
    from posttrain.rewards.score import score_many

    scores = score_many(ROWS, timeout_seconds=1.0)
    return [score.value for score in scores], [score.verdict for score in scores]


def send_scores(connection) -> None:
    workers = answering_workers()
    connection.send((score_all(), workers))


def answering_workers() -> set[int]:
    """The processes that answer this process's calls."""
    return {done[1] for done in shared_pool().run([(crafted.process_id, ())] * 40, timeout_seconds=30)}


def alive(process_id: int) -> bool:
    """True for a process that runs or is a zombie."""
    return Path(f"/proc/{process_id}").exists()


def test_scores_are_the_same_from_main_thread_other_thread_and_asyncio():
    """Closes T46."""
    assert score_all() == (VALUES, VERDICTS)
    found = []
    thread = threading.Thread(target=lambda: found.append(score_all()))
    thread.start()
    thread.join()

    async def inside() -> list[tuple[list[float], list[str]]]:
        return [score_all(), await asyncio.to_thread(score_all)]

    assert [*found, *asyncio.run(inside())] == [(VALUES, VERDICTS)] * 3


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_scores_are_the_same_from_a_daemonic_process(method):
    """Closes T46: such a process may not start multiprocessing children of its own."""
    assert score_all() == (VALUES, VERDICTS)  # the forked child inherits a pool that is not its own
    inherited = answering_workers()
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=send_scores, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(120)
    scores, workers = ours.recv()
    assert scores == (VALUES, VERDICTS)
    assert workers
    assert not workers & inherited
    process.join()
    assert process.exitcode == 0
    assert score_all() == (VALUES, VERDICTS)  # and ours still works


def test_a_script_needs_no_main_guard(tmp_path):
    """Closes T46: the workers never import the caller's main module."""
    script = tmp_path / "script.py"
    script.write_text(
        "from posttrain.rewards.score import score_many\n"
        "print([s.value for s in score_many([('math', '\\\\boxed{2}', '2')] * 3)])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[1.0, 1.0, 1.0]"
    assert done.stderr == ""


def test_outcomes_keep_order_and_count(pool):
    numbers = list(range(300))
    outcomes = pool.run([(crafted.double, (n,)) for n in numbers], timeout_seconds=30)
    assert outcomes == [(True, 2 * n) for n in numbers]
    assert pool.run([], timeout_seconds=1) == []


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ((crafted.sleep, (60.0,)), "took longer than 1 seconds"),
        ((crafted.spin, ()), "took longer than 1 seconds"),
        ((crafted.die, ()), "the process died with code -9"),
        ((crafted.raise_fault, ()), "LookupError: on purpose"),
        ((crafted.allocate, (8 * 2**30,)), "MemoryError"),
        ((crafted.unpicklable, ()), "pickle"),
        ((crafted.double, (lambda: None,)), "pickle"),
        ((crafted.double, ()), "TypeError"),
    ],
    ids=lambda value: value[0].__name__ if isinstance(value, tuple) else "",
)
def test_a_bad_call_fails_alone(pool, call, reason):
    """Closes T47: the pool outlives the call, and its neighbours in the same batch are answered."""
    good = (crafted.double, (21,))
    outcomes = pool.run([good] * 20 + [call] + [good] * 20, timeout_seconds=1)
    done, why = outcomes.pop(20)
    assert not done
    assert reason.lower() in why.lower()
    assert outcomes == [(True, 42)] * 40
    assert pool.run([good], timeout_seconds=1) == [(True, 42)]


def test_a_worker_is_kept_until_it_dies(pool):
    one = (crafted.process_id, ())
    runs = [{done[1] for done in pool.run([one] * 40, timeout_seconds=30)} for _ in range(4)]
    before = set().union(*runs)
    assert len(before) <= 2  # its workers; a quick one may do a whole run before the other is up
    for process in before:
        os.kill(process, 9)
    after = {done[1] for done in pool.run([one] * 40, timeout_seconds=30)}
    assert after
    assert not after & before


def test_no_process_is_left_behind(pool):
    pool.run(
        [(crafted.sleep, (60.0,)), (crafted.die, ()), *[(crafted.double, (1,))] * 8], timeout_seconds=0.5
    )
    processes = pool.process_ids()
    assert processes
    pool.close()
    assert not any(map(alive, processes))
    assert pool.process_ids() == []
    assert pool.run([(crafted.double, (1,))], timeout_seconds=30) == [(True, 2)]


def test_the_pool_ends_with_its_process():
    code = (
        "from posttrain.rewards.pool import shared_pool; import os\n"
        "pool = shared_pool(); print(pool.run([(os.getpid, ())], timeout_seconds=30)[0][1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert not alive(int(done.stdout))


def test_functions_of_a_script_and_senseless_limits_are_refused(pool):
    function = type(crafted.double)(crafted.double.__code__, {"__name__": "__main__"}, "mine")
    with pytest.raises(ValueError, match="move it to a module"):
        pool.run([(function, ())], timeout_seconds=1)
    with pytest.raises(ValueError, match="positive"):
        pool.run([], timeout_seconds=0)
    with pytest.raises(ValueError, match="at least one"):
        Pool(-1)
