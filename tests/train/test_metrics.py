"""The metrics log survives kill -9, and sums are sums."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest

from posttrain.errors import CheckpointError
from posttrain.train.metrics import MetricsLog, Totals, read_metrics


def test_totals_add_and_average():
    totals = Totals()
    totals.add({"loss": 0.5, "tokens": 10})
    totals.add({"loss": 0.25, "kl": 2.0})
    assert totals == {"loss": 0.75, "tokens": 10.0, "kl": 2.0}
    assert totals.averages(4) == {"loss": 0.1875, "tokens": 2.5, "kl": 0.5}
    with pytest.raises(ValueError):
        totals.averages(0)


def test_lines_are_what_was_written(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(1, {"loss/nats_per_token": 2.5, "batch/rows": 32})
        log.write(2, {"loss/nats_per_token": 1 / 3})
    lines = path.read_text().splitlines()
    assert lines[0] == '{"step": 1, "loss/nats_per_token": 2.5, "batch/rows": 32}'
    assert json.loads(lines[1]) == {"step": 2, "loss/nats_per_token": 1 / 3}
    assert read_metrics(path) == [json.loads(line) for line in lines]


def test_numbers_that_are_not_finite_become_null_and_are_counted(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": 1.0})
        log.write(2, {"a": -math.inf, "b": 2.0})
        assert log.not_finite == {"a": 2, "b": 1}
        assert log.warnings() == [
            "a was not a finite number at 2 steps",
            "b was not a finite number at 1 step",
        ]
    assert read_metrics(tmp_path / "m.jsonl") == [
        {"step": 1, "a": None, "b": None, "c": 1.0},
        {"step": 2, "a": None, "b": 2.0},
    ]
    assert "NaN" not in (tmp_path / "m.jsonl").read_text()


def test_a_killed_writer_loses_no_finished_step(tmp_path):
    """kill -9 right after `write`: the line is there."""
    path = tmp_path / "m.jsonl"
    code = (
        "import os, signal, sys, pathlib\n"
        "from posttrain.train.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]))\n"
        "for step in (1, 2, 3): log.write(step, {'x': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert finished.returncode == -9
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step', "{", '{"step": 4}garbage', "[1]", "7"])
def test_a_torn_last_line_is_left_out_and_cut(tmp_path, torn):
    """Part of T54 and T55: resuming appends after the last whole line."""
    path = tmp_path / "m.jsonl"
    whole = '{"step": 1, "x": 1.0}\n{"step": 2, "x": 2.0}\n'
    path.write_text(whole + torn)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    with MetricsLog(path) as log:
        assert path.read_text() == whole
        log.write(3, {"x": 3.0})
    assert path.read_text() == whole + '{"step": 3, "x": 3.0}\n'


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    with MetricsLog(path) as log:
        log.write(3, {})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_resume_cuts_the_steps_past_the_checkpoint(tmp_path, step, kept):
    """Steps done after the checkpoint are done again, so their old lines go; earlier bytes stay."""
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        for number in range(1, 6):
            log.write(number, {"x": number / 7})
    before = path.read_bytes().splitlines(keepends=True)
    with MetricsLog(path) as log:
        assert log.truncate_after(step) == 5 - len(kept)
        log.write(step + 1, {"again": 1.0})
    after = path.read_bytes().splitlines(keepends=True)
    assert after[:-1] == before[: len(kept)]
    assert json.loads(after[-1]) == {"step": step + 1, "again": 1.0}


def test_no_file_means_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=r"m\.jsonl:2"):
        read_metrics(path)
    with MetricsLog(path) as log, pytest.raises(CheckpointError, match=r"m\.jsonl:2"):
        log.truncate_after(1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(CheckpointError, match="disk is full"):
        log.write(1, {"x": 1.0})
    # The line is still buffered and cannot be written at closing either.
    with pytest.raises(OSError):
        log.close()
