"""What the hub may answer, from a server that speaks as it does: a file at a commit, or one sentence why not."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from posttrain.errors import DataError
from posttrain.evaluation import hub
from posttrain.evaluation.datafile import data_source, read_data
from posttrain.evaluation.hub import open_data
from posttrain.evaluation.hub_table import HUB
from posttrain.evaluation.task import Needs

sys.path.insert(0, str(Path(__file__).parent))
from toy_benchmark import Toy

NAME = "gsm8k/test.jsonl"
ROWS = [{"question": "1?", "answer": "#### 1"}, {"question": "2?", "answer": "#### 2"}]
BODY = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COMMIT = "d" * 40
ERRORS = {
    "gated": (403, "GatedRepo", "o/n is gated: accept its terms on its hub page and run `hf auth login`"),
    "disabled": (403, "", "the hub could not give it (DisabledRepoError)"),
    "no data set": (404, "RepoNotFound", "the hub has no data set o/n"),
    "no commit": (404, "RevisionNotFound", f"the hub has no o/n at {'c' * 40}"),
    "no file": (404, "EntryNotFound", f"there is no data/test.jsonl in o/n at {'c' * 40}"),
    "broken": (500, "", "the hub could not give it"),
}


class Answers(BaseHTTPRequestHandler):
    """One file, or one error; what was asked for is in `server.paths`."""

    def do_HEAD(self) -> None:
        if self.path.startswith("/datasets/"):  # the client asks for other things too
            self.server.paths.append(self.path)  # type: ignore[attr-defined]
        status, code = self.server.error  # type: ignore[attr-defined]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 403 and not code:
            self.send_header("X-Error-Message", "Access to this resource is disabled.")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"1234"')
        self.send_header("Content-Length", str(len(BODY) if status == 200 else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.server.error[0] == 200:  # type: ignore[attr-defined]
            self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.paths, found.error = [], (200, "")
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    url = f"http://127.0.0.1:{found.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "own"))
    yield found
    found.shutdown()
    found.server_close()


def fetched(monkeypatch, revision: str | None) -> Path:
    source = replace(HUB[NAME], id="o/n", revision=revision, files=("data/test.jsonl",), num_rows=2)
    monkeypatch.setattr(hub, "HUB", {NAME: source})
    return open_data("hub", [replace(Toy(), needs=Needs(files=(NAME,)))], lambda line: None)


def test_a_pinned_file_is_asked_for_once(server, monkeypatch):
    folder = fetched(monkeypatch, COMMIT)
    assert read_data(folder, NAME) == ROWS
    asked = len(server.paths)
    assert set(server.paths) == {f"/datasets/o/n/resolve/{COMMIT}/data/test.jsonl"}
    assert fetched(monkeypatch, COMMIT) == folder and len(server.paths) == asked


def test_without_a_pin_the_hub_says_which_commit_it_is(server, monkeypatch):
    folder = fetched(monkeypatch, None)
    assert server.paths[0] == "/datasets/o/n/resolve/main/data/test.jsonl"
    source = data_source(folder, NAME)
    assert source is not None and source["revision"] == COMMIT


@pytest.mark.parametrize(("status", "code", "says"), ERRORS.values(), ids=ERRORS.keys())
def test_why_not_is_one_sentence(status, code, says, server, monkeypatch):
    server.error = (status, code)
    with pytest.raises(DataError) as refusal:
        fetched(monkeypatch, "c" * 40)
    assert says in str(refusal.value) and "--data" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_without_a_network_the_way_out_is_named(server, monkeypatch):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"check the network and HF_HUB_OFFLINE, or give a data folder"):
        fetched(monkeypatch, "c" * 40)
