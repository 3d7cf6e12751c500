"""Files, directories and hub ids as rows with an identity."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest

from posttrain.data.sources import read_rows
from posttrain.errors import DataError

ROWS = [{"n": 1, "text": "é\u2028x"}, {"n": 2, "text": "y"}, {"n": 3, "text": "🙂"}]


def values(source):
    return [row.values for row in source]


@pytest.fixture
def write(tmp_path):
    """Writes ROWS under a name, in the form its suffix says; returns the path."""

    def write(name, rows=ROWS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(lines))
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows))
        else:
            path.write_bytes(lines)
        return path

    return write


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_files(write, name):
    """Every form gives the same rows, twice over, with the sha256 of the file's bytes."""
    path = write(name)
    source = read_rows(str(path))
    assert values(source) == ROWS and values(source) == ROWS
    assert source.num_rows == 3
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    unit = "line" if "jsonl" in name else "row"
    assert [row.place for row in source] == [f"{name} {unit} {n}" for n in (1, 2, 3)]
    assert [row.default_id for row in source] == [f"{name}:{n}" for n in (1, 2, 3)]


def test_json_that_is_json_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"n": 1}\n{"n": 2}\n')
    assert values(read_rows(str(tmp_path / "a.json"))) == [{"n": 1}, {"n": 2}]


def test_blank_lines_and_byte_order_marks(tmp_path):
    """Blank lines are no rows but count as lines; a byte order mark is no part of the first row."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\n\n{"n": 2}\n\n')
    source = read_rows(str(tmp_path / "a.jsonl"))
    assert source.num_rows == 2
    assert [row.place for row in source] == ["a.jsonl line 1", "a.jsonl line 3"]
    assert values(source) == [{"n": 1}, {"n": 2}]


def test_directory(write, tmp_path):
    """All data files in the order of their names; other files and hidden ones are not read."""
    write("d/b.jsonl", ROWS[1:2])
    write("d/a/z.parquet", ROWS[:1])
    write("d/.cache/x.jsonl", [{"n": 99}])
    (tmp_path / "d" / "README.md").write_text(
        "---\nlanguage: en\nlicense: odc-by\n---\n# Data\nlicense: no\n"
    )
    source = read_rows(str(tmp_path / "d"))
    assert [row.values["n"] for row in source] == [1, 2]
    assert [row.place for row in source] == ["a/z.parquet row 1", "b.jsonl line 1"]
    assert source.licence == "odc-by"
    before = source.sha256
    write("d/b.jsonl", ROWS[2:])
    assert read_rows(str(tmp_path / "d")).sha256 != before


def test_directory_with_splits(write, tmp_path):
    write("d/train-00000-of-00002.jsonl", ROWS[:1])
    write("d/train-00001-of-00002.jsonl", ROWS[1:2])
    write("d/test.jsonl", ROWS[2:])
    write("d/training_notes.jsonl", [{"n": 99}])
    assert [row.values["n"] for row in read_rows(str(tmp_path / "d"))] == [1, 2]
    assert [row.values["n"] for row in read_rows(str(tmp_path / "d"), split="test")] == [3]
    with pytest.raises(DataError, match="has no split 'validation'; it has: test, train"):
        read_rows(str(tmp_path / "d"), split="validation")


def test_file_has_no_splits(write):
    with pytest.raises(DataError, match="is one file and has no split 'test'"):
        read_rows(str(write("a.jsonl")), split="test")


def test_missing_file(write):
    path = write("train.jsonl")
    with pytest.raises(DataError, match=r"no file .*trian\.jsonl; did you mean .*train\.jsonl\?"):
        read_rows(str(path.with_name("trian.jsonl")))
    with pytest.raises(DataError, match=r"no file \.\./a/b/c; check the path"):
        read_rows("../a/b/c")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"n": 1}\n{"n": \n', "^a.jsonl line 2: not valid JSON"),
        ("a.jsonl", b'{"n": 1}\n\n[1]\n', "^a.jsonl line 3: a row must be a JSON object, not list"),
        ("a.jsonl", b'{"n": "\xff"}\n', "^a.jsonl line 1: not valid JSON"),
        ("a.json", b'[{"n": 1}, 5]', "^a.json row 2: a row must be a JSON object, not int"),
        ("a.json", b'[{"n": 1}, ', "^a.json: not valid JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"n": 1}\n' * 99, mtime=0)[:-9],
            "^a.jsonl.gz is not a whole gzip file",
        ),
        ("a.jsonl.gz", b'{"n": 1}\n', "^a.jsonl.gz is not a whole gzip file"),
        ("a.parquet", b"PAR1 and no more", "^a.parquet is not a whole Parquet file"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
    ],
)
def test_damaged_files(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_rows(str(tmp_path / name)))


def test_empty_directory(tmp_path):
    with pytest.raises(DataError, match="holds no data file"):
        read_rows(str(tmp_path))


def test_hub(monkeypatch):
    """A name that is no file is asked of the hub; its rows decide its sha256, its card the licence."""
    import datasets

    asked = []

    def load_dataset(name, *, split, revision):
        asked.append((name, split, revision))
        info = datasets.DatasetInfo(license="mit")
        return datasets.Dataset.from_list(ROWS if revision != "other" else ROWS[:2], info=info)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = read_rows("owner/name", split="test", revision="abc")
    assert asked == [("owner/name", "test", "abc")]
    assert values(source) == ROWS and source.num_rows == 3 and source.licence == "mit"
    assert next(iter(source)).place == "owner/name row 1"
    assert read_rows("owner/name", revision="abc").sha256 == source.sha256
    assert read_rows("owner/name", revision="other").sha256 != source.sha256


@pytest.mark.parametrize("error", [ConnectionError("offline"), ValueError('Unknown split "test".')])
def test_hub_that_cannot_be_reached(monkeypatch, error):
    """One sentence, whatever the library says over how many lines."""
    import datasets

    def load_dataset(name, **_):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match="no file 'owner/name', and it could not be loaded from the hub"
    ) as caught:
        read_rows("owner/name")
    assert "\n" not in str(caught.value) and str(error) in str(caught.value)
