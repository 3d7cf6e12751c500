"""A folder is the old one or the new one, never half of each."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.model.atomic import atomic_folder

KILLED = """
import os, signal, sys
from pathlib import Path
import posttrain.model.atomic as atomic
target, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
renames = 0
rename = Path.rename
def counted(self, to):
    global renames
    renames += 1
    if moment == f"before rename {renames}":
        die()
    result = rename(self, to)
    if moment == f"after rename {renames}":
        die()
    return result
Path.rename = counted
if moment == "flushing":
    atomic._flush = die
with atomic.atomic_folder(target) as folder:
    (folder / "a").write_text("new")
    if moment == "writing":
        die()
    (folder / "b").write_text("new")
"""


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as new:
        (new / "a").write_text(text)
        (new / "b").write_text(text)


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    write(tmp_path / "model", "old")
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "c").write_text("new")
        assert contents(tmp_path / "model") == {"a": "old", "b": "old"}
    assert contents(tmp_path / "model") == {"c": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_the_old_folder_and_no_litter(tmp_path):
    write(tmp_path / "model", "old")
    with pytest.raises(OSError, match="disk full"), atomic_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("new")
        raise OSError("disk full")
    assert contents(tmp_path / "model") == {"a": "old", "b": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("moment", "survivor"),
    [
        ("writing", "old"),
        ("flushing", "old"),
        ("before rename 1", "old"),
        ("after rename 1", "old"),  # neither has the name: the next writer puts the old one back first
        ("before rename 2", "old"),
        ("after rename 2", "new"),
    ],
)
def test_a_kill_at_any_moment_leaves_a_whole_folder(tmp_path, moment, survivor):
    """Closes T55 for exported folders: kill -9 while writing, between the renames and after them."""
    target = tmp_path / "model"
    write(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), moment])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(OSError, match="stop here"), atomic_folder(target):
        raise OSError("stop here")
    assert contents(target) == {"a": survivor, "b": survivor}
    write(target, "third")
    assert contents(target) == {"a": "third", "b": "third"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
