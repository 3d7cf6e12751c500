"""A cached model is built once, trusted while it is whole, and built again when it is not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.errors import ModelError
from posttrain.model.cache import cache_dir, cached_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"0123456789")


def test_built_once(cache):
    build = Builder()
    first, second = cached_model("m", build), cached_model("m", build)
    assert first == second == cache / "models" / "m"
    assert build.times == 1
    assert cached_model("other", build) != first
    assert build.times == 2


def truncated(folder):
    os.truncate(folder / "model.safetensors", 9)


def truncated_at_the_same_instant(folder):
    weights = folder / "model.safetensors"
    status = weights.stat()
    os.truncate(weights, 9)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))


def edited(folder):
    (folder / "model.safetensors").write_bytes(b"0123456780")


def missing(folder):
    (folder / "config.json").unlink()


def without_manifest(folder):
    (folder.parent / "m.manifest.json").unlink()


def half_a_manifest(folder):
    manifest = folder.parent / "m.manifest.json"
    manifest.write_text(manifest.read_text()[:20])


def foreign_manifest(folder):
    (folder.parent / "m.manifest.json").write_text('{"files": {}}')


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        truncated_at_the_same_instant,
        edited,
        missing,
        without_manifest,
        half_a_manifest,
        foreign_manifest,
    ],
)
def test_damage_is_found_and_mended(cache, damage):
    build = Builder()
    folder = cached_model("m", build)
    damage(folder)
    console = Console(file=io.StringIO())
    assert cached_model("m", build, console=console) == folder
    assert build.times == 2
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"
    cached_model("m", build)
    assert build.times == 2
    if damage is not without_manifest:
        assert "damaged" in console.file.getvalue()


def test_a_copied_cache_is_not_built_again(cache):
    """Copying loses the modification times; the hashes then decide."""
    build = Builder()
    folder = cached_model("m", build)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    cached_model("m", build)
    assert build.times == 1


def test_a_build_that_fails_leaves_nothing_behind(cache):
    def fails(folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise ModelError("no network")

    with pytest.raises(ModelError, match="no network"):
        cached_model("m", fails)
    build = Builder()
    cached_model("m", build)
    assert build.times == 1


RACER = """
import sys, time
from pathlib import Path
from posttrain.model.cache import cached_model
def build(folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
print((cached_model("m", build) / "config.json").read_text())
"""


def test_two_processes_build_once(cache, tmp_path):
    log = tmp_path / "log"
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(log)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [racer.communicate()[0].strip() for racer in racers] == ["{}", "{}"]
    assert log.read_text() == "built\n"


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", "/a/b")
    assert cache_dir() == Path("/a/b")
    monkeypatch.delenv("POSTTRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/posttrain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache_dir() == Path("/h/.cache/posttrain")
