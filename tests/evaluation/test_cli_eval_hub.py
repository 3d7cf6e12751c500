"""`--data hub` as it is typed: what was read from where is said, and stays in the results."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from posttrain.cli import main
from posttrain.evaluation import hub, registry
from posttrain.evaluation.hub_rows import columns
from posttrain.evaluation.hub_table import HUB, HubSource

sys.path.insert(0, str(Path(__file__).parent))
import hub_cache
import toy_benchmark

COMMIT = "e" * 40
COLUMNS = ("id", "question", "group")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The toy's questions on the hub, and no data folder; the path of the hub's file."""
    monkeypatch.setitem(registry.TASKS, "toy", registry.Entry("toy"))
    monkeypatch.setitem(sys.modules, "posttrain.evaluation.tasks.toy", toy_benchmark)
    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HubSource("o/toy", COMMIT, ("test.parquet",), 8, COLUMNS, columns(*COLUMNS))
    monkeypatch.setattr(hub, "HUB", {toy_benchmark.FILE: source})
    lines = (toy_benchmark.write_data(tmp_path / "data") / toy_benchmark.FILE).read_text().splitlines()
    return hub_cache.put(tmp_path / "hub", "o/toy", COMMIT, "test.parquet", [json.loads(x) for x in lines])


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["posttrain", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_results_say_which_commit_of_what(published, tiny_llama_dir, tmp_path, monkeypatch, capsys):
    """Without a data folder the hub is read; the same rows give the same outputs, and settings tell them apart."""
    out = tmp_path / "out"
    assert call(monkeypatch, "eval", tiny_llama_dir, "--task", "toy", "--out", out) == 0
    assert f"toy/test.jsonl: o/toy at {COMMIT}, test.parquet" in capsys.readouterr().err
    result = json.loads((out / "toy/result.json").read_text())
    assert result["data_sources"][toy_benchmark.FILE]["id"] == "o/toy"
    assert result["data_sources"][toy_benchmark.FILE]["revision"] == COMMIT
    assert list(result["data_sources"][toy_benchmark.FILE]["files"]) == ["test.parquet"]
    words = ("eval", tiny_llama_dir, "--task", "toy", "--data", tmp_path / "data", "--out")
    assert call(monkeypatch, *words, tmp_path / "other") == 0
    other = json.loads((tmp_path / "other/toy/result.json").read_text())
    assert (other["data_sources"], other["metrics"]) == ({}, result["metrics"])
    assert (tmp_path / "other/toy/outputs.jsonl").read_bytes() == (out / "toy/outputs.jsonl").read_bytes()


def test_score_and_show_prompt_read_the_hub_too(published, tiny_llama_dir, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": 0, "output": "xy"}\n')
    assert call(monkeypatch, "score", "toy", "--in", rows, "--data", "hub") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["data_sources"][toy_benchmark.FILE]["revision"] == COMMIT
    words = ("eval", "show-prompt", "toy", "--data", "hub", "--model", tiny_llama_dir)
    assert call(monkeypatch, *words) == 0
    shown = capsys.readouterr()
    assert "What is 0?" in shown.out and f"o/toy at {COMMIT}" in shown.err and COMMIT not in shown.out


def test_nothing_is_fetched_for_a_folder(published, tmp_path, monkeypatch, capsys):
    """A folder that lacks the file is refused, though the hub has it."""
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, "eval", "m", "--task", "toy", "--data", tmp_path / "empty") == 3
    said = capsys.readouterr().err
    assert "toy/test.jsonl is not in the data folder" in said and "o/toy" not in said


def test_the_hubs_own_variables_are_heeded(posttrain_data, tmp_path):
    """Another process, the real table, a cache that was filled before and no network."""
    source = HUB["ifeval/input_data.jsonl"]
    content = (posttrain_data / "ifeval/input_data.jsonl").read_bytes()
    hub_cache.put(tmp_path / "hub", source.id, source.revision or "", source.files[0], content)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "1001", "output": "no commas here"}\n')
    own = {"HF_HUB_CACHE": str(tmp_path / "hub"), "POSTTRAIN_CACHE": str(tmp_path / "own")}
    environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1", "POSTTRAIN_DATA": "hub"}
    command = [sys.executable, "-m", "posttrain", "score", "ifeval", "--in", str(rows)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(found.stdout.splitlines()[-1])
    assert (said["n"], said["missing"]) == (1, 540)
    assert said["data_sources"]["ifeval/input_data.jsonl"] == {
        "id": "google/IFEval",
        "revision": source.revision,
        "files": {source.files[0]: hashlib.sha256(content).hexdigest()},
    }
    assert f"ifeval/input_data.jsonl: google/IFEval at {source.revision}" in found.stderr
