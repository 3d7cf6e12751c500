"""Checkpoints: whole or absent whatever kills the writer, checked when read."""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import sys
from pathlib import Path

import pytest
import torch

from posttrain.errors import CheckpointError
from posttrain.train.checkpoint import Checkpoints

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing on the disk changes after it, clean-up included."""


class Killer:
    """Once armed, lets `left` file operations below `folder` happen; every later one raises."""

    def __init__(self) -> None:
        self.folder, self.left, self.fired, self.armed = "", 0, False, False

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.armed or event not in WATCHED or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and arguments[1] is not None and "r" in arguments[1] and "+" not in arguments[1]:
            return
        if self.left <= 0:
            self.fired = True
            raise Killed(event)
        self.left -= 1


KILLER = Killer()
sys.addaudithook(KILLER)  # hooks cannot be taken off again; this one sleeps unless armed


@pytest.fixture
def kill_after(tmp_path):
    """Arms the killer for the test's folder."""

    def arm(count: int) -> Killer:
        KILLER.folder, KILLER.left, KILLER.fired, KILLER.armed = str(tmp_path), count, False, True
        return KILLER

    yield arm
    KILLER.armed = False


def state(step: int) -> dict:
    return {"weights": torch.full((50,), float(step)), "order": {"seed": 2**62 + step, "offset": step}}


def same(one: dict, other: dict) -> bool:
    return torch.equal(one["weights"], other["weights"]) and one["order"] == other["order"]


def test_what_is_saved_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=2)
    assert checkpoints.load() is None
    for step in (1, 2, 3, 4):
        checkpoints.save_if_due(step, lambda: state(step))  # noqa: B023
    step, found = checkpoints.load()
    assert step == 4 and same(found, state(4))
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step_000002", "step_000004"]


def test_only_the_last_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1)
    for step in (8, 9, 10, 11):
        checkpoints.save(step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000010", "step_000011"]
    Checkpoints(tmp_path / "none", every=None).save_if_due(1, lambda: pytest.fail("nothing is due"))


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_a_kill_at_any_file_operation_leaves_the_last_whole_one(tmp_path, kill_after, again):
    """Two checkpoints, then a third that also prunes the first, killed at its k-th file operation, for all k.

    What loads is step 2's or, once its name is there, step 3's; the next save works. Closes T55.
    """
    outcomes = []
    for count in range(100):
        folder = tmp_path / f"run{count}"
        checkpoints = Checkpoints(folder, every=1)
        for step in (1, 2):
            checkpoints.save(step, state(step))
        target = 2 if again else 3
        killer = kill_after(count)
        with contextlib.suppress(Killed):
            checkpoints.save(target, state(target + 100))
        killer.armed = False
        step, found = Checkpoints(folder, every=1).load()
        expected = {1: state(1), 2: state(2), target: state(target + 100)}
        assert same(found, expected[step]) or (again and same(found, state(2)))
        outcomes.append(step)
        checkpoints.save(4, state(4))
        assert checkpoints.load()[0] == 4
        if not killer.fired:
            break
    assert not killer.fired and len(outcomes) > 5, "the walk must reach a save that nothing stops"
    assert outcomes[-1] == target and 2 in outcomes


def test_a_kill_in_the_middle_of_a_write_leaves_the_last_whole_one(tmp_path, monkeypatch):
    """Half of the state is written when the process dies. Closes T55."""
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(1, state(1))
    whole = io.BytesIO()
    torch.save(state(2), whole)

    def torn(_, file) -> None:
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        patch.setattr("shutil.rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            checkpoints.save(2, state(2))
    assert any(path.name.startswith(".") for path in tmp_path.iterdir()), "the torn one is still there"
    assert checkpoints.load()[0] == 1
    checkpoints.save(2, state(2))
    assert checkpoints.load()[0] == 2
    checkpoints.clear()
    assert not tmp_path.exists()


DAMAGE = {
    "cut": lambda p: (p / "state.pt").write_bytes((p / "state.pt").read_bytes()[:-7]),
    "flipped": lambda p: (p / "state.pt").write_bytes(
        (p / "state.pt").read_bytes()[:200] + b"!" + (p / "state.pt").read_bytes()[201:]
    ),
    "state gone": lambda p: (p / "state.pt").unlink(),
    "seal gone": lambda p: (p / "seal.json").unlink(),
    "seal empty": lambda p: (p / "seal.json").write_text(""),
    "seal of another kind": lambda p: (p / "seal.json").write_text("[]"),
    "seal without a sum": lambda p: (p / "seal.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    """Never loaded, never passed over in silence: one sentence says which to delete and what is left.

    Closes T55.
    """
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(3, state(3))
    checkpoints.save(6, state(6))
    damage(tmp_path / "step_000006")
    with pytest.raises(CheckpointError, match=r"step_000006 is damaged .*delete it to go on from step 3$"):
        checkpoints.load()
    damage(tmp_path / "step_000003")
    shutil.rmtree(tmp_path / "step_000006")
    with pytest.raises(CheckpointError, match=r"step_000003 is damaged .*from the stage's start$"):
        checkpoints.load()


def test_other_names_are_not_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(3, state(3))
    (tmp_path / "step_000003.bak").mkdir()
    assert checkpoints.load()[0] == 3


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """The write fails half-way: CheckpointError, and the checkpoint before it is still whole."""
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(1, state(1))

    def full(_, file) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"the disk is full: cannot write .*step_000002; free some space"
    ):
        checkpoints.save(2, state(2))
    assert checkpoints.load()[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


class Nearly(io.BytesIO):
    """A file on a disk with little room left."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_disk_that_fills_up_inside_torch_is_the_same_sentence(tmp_path, monkeypatch):
    """torch.save then complains of an unexpected position in its archive, which would tell a user nothing."""
    checkpoints = Checkpoints(tmp_path, every=1)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        torch.save(state(1), Nearly())
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Nearly())
    with pytest.raises(CheckpointError, match=r"the disk is full: cannot write .*step_000001"):
        checkpoints.save(1, state(1))
    monkeypatch.undo()
    assert checkpoints.load() is None and list(tmp_path.iterdir()) == []
