"""What goes wrong for a user is one sentence and an exit code, and the next run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.model import atomic
from posttrain.train import folder as run_folder
from posttrain.train.checkpoint import Checkpoints

COMMAND = [sys.executable, "-m", "posttrain", "run"]


@pytest.fixture
def command(recipe_files, monkeypatch, capsys, tmp_path):
    """Runs the command with changes; returns its exit code and what it complained of."""

    def run(*overrides: str, output: Path = tmp_path / "run") -> tuple[int, str]:
        arguments = ["run", str(recipe_files / "tiny.yaml"), *overrides, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["posttrain", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capsys.readouterr().err.strip()

    return run


@pytest.fixture
def refuse(command):
    """Runs the command, which must end in one line; returns exit code and line."""

    def run(*overrides: str, **where: Path) -> tuple[int, str]:
        code, complaint = command(*overrides, **where)
        assert complaint.startswith("error: ") and len(complaint.splitlines()) == 1, complaint
        return code, complaint

    return run


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ASK = {"role": "user", "content": "?"}


def test_no_model(refuse, tmp_path):
    code, line = refuse(f"model={tmp_path / 'nowhere'}")
    assert code == 3 and "nowhere, which does not exist" in line
    (tmp_path / "empty").mkdir()
    code, line = refuse(f"model={tmp_path / 'empty'}")
    assert code == 4 and "empty" in line


def test_a_damaged_model(refuse, talker_dir, tmp_path):
    damaged = shutil.copytree(talker_dir, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, line = refuse(f"model={damaged}")
    assert code == 4 and "damaged cannot be loaded" in line


def test_no_data(refuse, tmp_path):
    code, line = refuse(f"stages.0.sft.data=[{{path: {tmp_path / 'nowhere.jsonl'}}}]")
    assert code == 3 and "nowhere.jsonl, which does not exist" in line
    empty = write(tmp_path / "empty.jsonl")
    code, line = refuse(f"stages.0.sft.data=[{{path: {empty}}}]")
    assert code == 3 and "empty.jsonl has no rows" in line


def test_a_row_that_teaches_nothing(refuse, tmp_path):
    """The only row has no assistant turn: nothing is left to train on, and the row is named."""
    path = write(tmp_path / "mute.jsonl", {"id": "mute-1", "messages": [ASK]})
    code, line = refuse(f"stages.0.sft.data=[{{path: {path}}}]")
    assert code == 3 and "1 no_assistant_turn" in line and "mute-1: no assistant turn" in line


def test_a_row_that_is_no_row(refuse, tmp_path):
    good = {"messages": [ASK, {"role": "assistant", "content": "a"}]}
    path = write(tmp_path / "odd.jsonl", good, {"messages": [{"role": "robot", "content": "?"}]})
    code, line = refuse(f"stages.0.sft.data=[{{path: {path}}}]")
    assert code == 3 and "odd.jsonl line 2" in line and "robot" in line


def test_an_unknown_verifier(refuse, tmp_path):
    """Closes T52."""
    path = write(tmp_path / "p.jsonl", {"messages": [ASK], "ground_truth": "a", "dataset": "gsm9k"})
    code, line = refuse(f"stages.2.grpo.problems=[{{path: {path}}}]")
    assert code == 2 and "there is no verifier 'gsm9k'; did you mean 'gsm8k'?" in line


def test_prompts_that_do_not_fit(refuse):
    code, line = refuse("stages.0.sft.rejection.max_prompt_tokens=1")
    assert code == 3 and "max_prompt_tokens = 1" in line


def test_nothing_good_was_sampled(refuse, tmp_path):
    """Rejection sampling may find no correct completion at all; the sentence says so and of how many."""
    rows = [{"id": str(i), "messages": [ASK], "ground_truth": "!!", "dataset": "string"} for i in range(3)]
    path = write(tmp_path / "hard.jsonl", *rows)
    code, line = refuse(f"stages.1.dpo.rejection.problems=[{{path: {path}}}]")
    assert code == 3 and "02-dpo has nothing to train on (3 no_correct_completion)" in line


def test_a_changed_setting(refuse, run_tiny, tmp_path):
    run_tiny(tmp_path / "run", "evaluation=null")
    code, line = refuse("evaluation=null", "stages.1.dpo.beta=0.3")
    assert code == 5 and "02-dpo holds a stage with other settings" in line


def test_a_damaged_checkpoint(refuse, run_tiny, tmp_path, monkeypatch):
    """The run that finds it names it; with it deleted the run goes on from the one before and ends the same."""
    whole, _ = run_tiny(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "clear", lambda self: None)
        run_tiny(tmp_path / "run")
    stage = tmp_path / "run" / "stages" / "03-grpo"
    for made in ("done.json", "model"):
        shutil.rmtree(stage / made) if (stage / made).is_dir() else (stage / made).unlink()
    newest = stage / "checkpoints" / "step_000006"
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-9])
    code, line = refuse()
    assert code == 5 and "step_000006 is damaged" in line and "go on from step 3" in line
    shutil.rmtree(newest)
    run_tiny(tmp_path / "run")
    model = "model/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (whole / model).read_bytes()


def test_a_damaged_record(refuse, run_tiny, tmp_path):
    run_tiny(tmp_path / "run")
    (tmp_path / "run" / "stages" / "01-sft" / "done.json").write_text('{"key": ')
    code, line = refuse()
    assert code == 5 and "done.json is damaged" in line


def test_a_folder_that_cannot_be_made(refuse, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, line = refuse(output=tmp_path / "file" / "run")
    assert code == 5 and "cannot write" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_is_read_only(refuse, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, line = refuse(output=tmp_path / "locked" / "run")
    assert code == 5 and "cannot write" in line


class FullDisk:
    """`fsync` that fails as a full disk does, after a number of calls below a folder."""

    def __init__(self, left: int) -> None:
        self.left, self.fsync, self.fired = left, os.fsync, False

    def __call__(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            self.fired = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync(descriptor)


def test_a_disk_that_fills_up_anywhere(command, run_tiny, tmp_path, monkeypatch):
    """Full after a few flushes, time and again on the way through a run: each time one sentence, and each time
    the run goes on from there; what it makes in the end is what an undisturbed run makes.
    """
    whole, _ = run_tiny(tmp_path / "whole")
    refused = 0
    for attempt in range(30):
        disk = FullDisk(17 + attempt % 5)
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.os, "fsync", disk)
            patch.setattr(atomic.os, "fsync", disk)
            code, line = command()
        if code == 0:
            break
        assert code == 5 and line.startswith("error: the disk is full: cannot write") and disk.fired
        assert len(line.splitlines()) == 1
        refused += 1
    assert code == 0 and refused > 3
    model = "model/model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (whole / model).read_bytes()


def test_a_disk_that_fills_up_under_the_model(refuse, run_tiny, tmp_path, monkeypatch):
    """safetensors has its own exception for it."""
    import huggingface_hub
    from safetensors import SafetensorError

    def full(*_) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "save_torch_state_dict", full)
        code, line = refuse("evaluation=null")
    assert code == 5 and "01-sft/model: I/O error: No space left" in line and "free some space" in line
    folder, _ = run_tiny(tmp_path / "run", "evaluation=null")
    assert (folder / "model").is_dir()


def test_ctrl_c(recipe_files, run_tiny, tmp_path):
    """SIGINT in the middle of training, with sampling ahead in its thread: exit code 130 and one line.

    No traceback; the same recipe then completes.
    """
    changes = ("evaluation=null", "stages.2.grpo.steps=100", "stages.2.grpo.generate_ahead=1")
    command = [*COMMAND, str(recipe_files / "tiny.yaml"), *changes, "--output", str(tmp_path / "run")]
    metrics = tmp_path / "run" / "stages" / "03-grpo" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines() == ["stopped; run the same command again to continue"]
    assert len(metrics.read_text().splitlines()) < 100
    run_tiny(tmp_path / "run", *changes)
    assert len(metrics.read_text().splitlines()) == 100
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
