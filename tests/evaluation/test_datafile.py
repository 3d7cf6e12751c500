"""Benchmark files: every form that is read, and one sentence for each that cannot be."""

from __future__ import annotations

import gzip
import hashlib
import json
import os

import pytest

from posttrain.errors import DataError
from posttrain.evaluation.datafile import data_sha256, find_data, read_data

ROWS = [{"q": "one\u2028two", "n": 1}, {"q": "é", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def put(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a/x.jsonl", LINES + "\n"),
        ("a/x.jsonl", "\ufeff" + LINES),
        ("a/x.jsonl.gz", LINES),
        ("x.json", json.dumps(ROWS)),
        ("x.json.gz", json.dumps(ROWS, ensure_ascii=False)),
    ],
)
def test_every_form_gives_the_rows(tmp_path, name, text):
    put(tmp_path, name, text)
    assert read_data(tmp_path, name) == ROWS


def test_csv_keeps_text_and_long_fields(tmp_path):
    long = "x" * 200_000
    put(tmp_path, "x.csv", f'id,prompt\n1,"a, ""b""\nc"\n2,{long}\n')
    assert read_data(tmp_path, "x.csv") == [{"id": "1", "prompt": 'a, "b"\nc'}, {"id": "2", "prompt": long}]


def test_tabs_separate_where_the_name_says_so(tmp_path):
    put(tmp_path, "x.tsv", 'id\tnames\n1\t"[""a"", ""b, c""]"\n')
    assert read_data(tmp_path, "x.tsv") == [{"id": "1", "names": '["a", "b, c"]'}]


def test_an_object_that_is_the_whole_file_is_one_row(tmp_path):
    put(tmp_path, "x.json", '{"a": "b"}')
    assert read_data(tmp_path, "x.json") == [{"a": "b"}]


def test_a_file_may_be_there_gzipped_or_not(tmp_path):
    put(tmp_path, "x.jsonl.gz", LINES)
    put(tmp_path, "y.jsonl", LINES)
    assert read_data(tmp_path, "x.jsonl") == ROWS == read_data(tmp_path, "y.jsonl.gz")
    assert find_data(tmp_path, "x.jsonl").name == "x.jsonl.gz"


def test_the_hash_is_of_the_bytes(tmp_path):
    path = put(tmp_path, "x.jsonl.gz", LINES)
    assert data_sha256(tmp_path, "x.jsonl") == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    path = put(tmp_path, "x.jsonl", '{"a": 1}\n')
    first = data_sha256(tmp_path, "x.jsonl")
    assert read_data(tmp_path, "x.jsonl") == [{"a": 1}]
    path.write_text('{"a": 2}\n')
    os.utime(path, ns=(1, 1))
    assert read_data(tmp_path, "x.jsonl") == [{"a": 2}]
    assert data_sha256(tmp_path, "x.jsonl") != first


def test_the_list_is_the_callers_own(tmp_path):
    put(tmp_path, "x.jsonl", LINES)
    read_data(tmp_path, "x.jsonl").clear()
    assert read_data(tmp_path, "x.jsonl") == ROWS


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"', r"x\.jsonl line 2: not valid JSON"),
        ("x.jsonl", b"[1]\n", r"line 1: a row must be a JSON object, not list"),
        ("x.jsonl", b"\n\n", "has no rows"),
        ("x.json", b"[1]", "row 1: a row must be a JSON object"),
        ("x.json", b"[", "not valid JSON"),
        ("x.jsonl.gz", b"not gzip", "not a whole gzip file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-4], "not a whole gzip file"),
        ("x.jsonl", b"\xff\xfe\x00", "not UTF-8"),
        ("x.csv", b"a,b\n1\n", "row 1: it has not as many fields"),
        ("x.csv", b"a,b\n1,2,3\n", "row 1: it has not as many fields"),
        ("x.txt", b"a", "data files end in"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_data(tmp_path, name)


def test_missing_files_and_folders_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"a/x\.jsonl is not in the data folder"):
        read_data(tmp_path, "a/x.jsonl")
    with pytest.raises(DataError, match="POSTTRAIN_DATA"):
        read_data(tmp_path / "absent", "x.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(DataError, match="is not in the data folder"):
        read_data(tmp_path, "dir.jsonl")
