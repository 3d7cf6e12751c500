"""The run folder: atomic files, errors in one sentence, keys that know what changed."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import CheckpointError
from posttrain.train.folder import (
    RunFolder,
    StageFolder,
    peak_rss_gib,
    read_json,
    stage_key,
    write_json,
    write_text,
)
from posttrain.train.manifest import describe_git, describe_machine, describe_run, describe_versions


def test_paths_are_those_of_the_contract():
    run = RunFolder(Path("runs/q"))
    stage = run.stage(3, "grpo")
    assert [str(path.relative_to("runs/q")) for path in (run.recipe, run.manifest, run.summary)] == [
        "recipe.yaml",
        "manifest.json",
        "summary.json",
    ]
    assert str(run.report) == "runs/q/report.html" and str(run.model) == "runs/q/model"
    assert stage.name == "03-grpo" and str(stage.root) == "runs/q/stages/03-grpo"
    assert str(stage.metrics.relative_to(stage.root)) == "metrics.jsonl"
    assert str(stage.heldout.relative_to(stage.root)) == "eval/heldout.jsonl"


def test_a_stage_is_done_only_for_its_key(tmp_path):
    stage = StageFolder(tmp_path / "01-sft")
    stage.prepare()
    assert not stage.is_done("abc")
    stage.finish("abc", seconds=12.3456, warnings=["careful"])
    assert stage.is_done("abc") and not stage.is_done("abd")
    done = json.loads(stage.done.read_text())
    assert done["key"] == "abc" and done["seconds"] == 12.346 and done["warnings"] == ["careful"]
    assert done["peak_rss_gib"] == pytest.approx(peak_rss_gib(), abs=0.01)


def test_stage_key_ignores_order_and_sees_every_change():
    parts = {"recipe": {"epochs": 2, "lr": 1e-5}, "data": ["aa", "bb"], "model": "m"}
    key = stage_key(parts)
    assert len(key) == 64 and int(key, 16) >= 0
    assert stage_key({"model": "m", "data": ["aa", "bb"], "recipe": {"lr": 1e-5, "epochs": 2}}) == key
    changed = [
        {**parts, "model": "n"},
        {**parts, "data": ["bb", "aa"]},
        {**parts, "recipe": {"epochs": 3, "lr": 1e-5}},
        {**parts, "recipe": {"epochs": "2", "lr": 1e-5}},
        {**parts, "extra": None},
    ]
    assert len({key, *map(stage_key, changed)}) == 6


def test_stage_key_is_the_sha256_of_canonical_json():
    """printf '{"a":[1,"\\u00e9"],"b":null}' | sha256sum"""
    import hashlib

    assert (
        stage_key({"b": None, "a": [1, "é"]}) == hashlib.sha256(b'{"a":[1,"\\u00e9"],"b":null}').hexdigest()
    )
    with pytest.raises(ValueError):
        stage_key({"lr": math.nan})
    with pytest.raises(TypeError):
        stage_key({"path": Path("x")})


def test_json_round_trip_leaves_no_temporary_file(tmp_path):
    write_json(tmp_path / "new" / "x.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "new" / "x.json") == {"é": [1, 2.5, None]}
    assert os.listdir(tmp_path / "new") == ["x.json"]


def test_nan_is_refused_before_the_old_file_is_touched(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    assert read_json(path) == {"a": 1}


def test_text_that_utf8_cannot_hold_is_still_written(tmp_path):
    write_text(tmp_path / "x", "a\ud800b")
    assert (tmp_path / "x").read_text() == "a?b"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_file(tmp_path, call):
    """Closes T55 for small files: killed before the rename, the old content is whole."""
    path = tmp_path / "x.json"
    write_json(path, {"old": True})
    code = (
        "import os, signal, sys, pathlib\n"
        f"os.{call} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from posttrain.train.folder import write_json\n"
        "write_json(pathlib.Path(sys.argv[1]), {'new': 'x' * 100_000})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -9
    assert read_json(path) == {"old": True}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch, code):
    path = tmp_path / "x.json"
    write_json(path, {"old": True})

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="the disk is full") as caught:
        write_json(path, {"new": True})
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert read_json(path) == {"old": True}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    """A file where the folder should be stands in for missing rights, which root would not notice."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write .*taken"):
        RunFolder(tmp_path / "taken").prepare()
    with pytest.raises(CheckpointError, match=r"cannot write .*taken"):
        StageFolder(tmp_path / "taken" / "01-sft").prepare()


def test_preparing_leaves_only_folders(tmp_path):
    RunFolder(tmp_path / "run").prepare()
    assert os.listdir(tmp_path / "run") == ["stages"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1'])
def test_damaged_json_names_the_file(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")


def test_missing_json_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"y\.json is missing"):
        read_json(tmp_path / "y.json")


def test_peak_memory_sees_a_large_allocation():
    """A child that fills 1 GiB reports between 1 and 2: the unit is GiB, and the peak outlives the block."""
    code = (
        "from posttrain.train.folder import peak_rss_gib\n"
        "block = bytearray(1 << 30); block[::4096] = b'x' * len(block[::4096]); del block\n"
        "print(peak_rss_gib())\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 < float(answer.stdout) < 2


def test_manifest_says_what_the_run_was_made_with(tmp_path):
    manifest = describe_run(
        name="q",
        recipe_hash="aa",
        seed=3,
        model={"name": "m", "source": "hub", "sha256": None},
        stages=[{"name": "sft", "kind": "sft", "key": "k"}],
        device="cpu",
        dtype="bfloat16",
    )
    assert set(manifest) == {
        *(
            "name",
            "recipe_hash",
            "created",
            "finished",
            "seed",
            "versions",
            "git",
            "machine",
            "model",
            "stages",
        )
    }
    assert manifest["finished"] is None and manifest["created"].endswith("+00:00")
    run = RunFolder(tmp_path)
    run.write_manifest(manifest)
    assert read_json(run.manifest) == manifest


def test_versions_are_those_installed():
    import torch

    versions = describe_versions()
    assert versions["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_machine_is_this_one():
    machine = describe_machine(device="cpu", dtype="float32")
    assert 1 <= machine["cores"] <= (os.cpu_count() or 1)
    assert 0.1 < machine["ram_gib"] < 100_000
    assert machine["cpu"] and machine["device"] == "cpu" and machine["dtype"] == "float32"


def test_git_is_the_commit_of_tracked_sources_only(tmp_path):
    assert describe_git(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert describe_git(package) is None
    git("add", ".")
    git("commit", "-q", "--no-verify", "-m", "first")
    assert describe_git(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "__init__.py").write_text("changed = 1")
    assert describe_git(package) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    stranger = tmp_path / "site-packages"
    stranger.mkdir()
    (stranger / "__init__.py").write_text("")
    assert describe_git(stranger) is None
