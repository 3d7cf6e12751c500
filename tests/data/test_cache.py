"""Tokens on disk: the key covers what changes them, and damage is noticed."""

from __future__ import annotations

import dataclasses

import pytest

from posttrain.data.cache import TokenKey, cache_folder, cached_pairs, cached_rows
from posttrain.data.mixture import Part, mix
from posttrain.data.pairs import pair_rows
from posttrain.data.render import Renderer
from posttrain.data.rows import sft_rows
from posttrain.errors import DataError
from posttrain.records import Conversation, Dropped, Message, Preference

ITEMS = [
    Conversation(f"é{i}", (Message("user", f"Q {i} <|im_end|>"), Message("assistant", "A" * (i + 1))))
    for i in range(9)
]


def parts(*, name="a", sha256="1", amount=1.0, second="b"):
    return [Part(name, ITEMS, sha256, amount), Part(second, ITEMS, "2", 3)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def key(chatml):
    return TokenKey("rows", mix(parts(), seed=1)[1], chatml.fingerprint, max_tokens=82, train_on="all")


@pytest.fixture
def build(chatml):
    """Builds the rows and counts how often it had to."""

    def build():
        build.calls += 1
        return sft_rows(ITEMS, chatml, max_tokens=82)

    build.calls = 0
    return build


def test_every_part_of_the_key_matters(key, make_tokenizer):
    """Closes T13: each thing that changes tokens is changed in turn, and gives another key."""
    template = "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
    tools = "{% if tools %}x{% endif %}"
    changed = {
        "source content": {"mixture": mix(parts(sha256="x"), seed=1)[1]},
        "source name": {"mixture": mix(parts(name="x"), seed=1)[1]},
        "amount": {"mixture": mix(parts(amount=2.0), seed=1)[1]},
        "type of amount": {"mixture": mix(parts(amount=1), seed=1)[1]},
        "order": {"mixture": mix(parts()[::-1], seed=1)[1]},
        "one source less": {"mixture": mix(parts()[:1], seed=1)[1]},
        "seed": {"mixture": mix(parts(), seed=2)[1]},
        "template": {"renderer": Renderer(make_tokenizer(), template).fingerprint},
        "template, for tools only": {"renderer": Renderer(make_tokenizer(), template + tools).fingerprint},
        "tokenizer": {"renderer": Renderer(make_tokenizer(vocab_size=350)).fingerprint},
        "max_tokens": {"max_tokens": 83},
        "train_on": {"train_on": "last"},
        "kind": {"kind": "pairs"},
        "code": {"code_version": key.code_version + 1},
    }
    digests = {name: dataclasses.replace(key, **change).digest for name, change in changed.items()}
    assert len({key.digest, *digests.values()}) == len(changed) + 1
    assert dataclasses.replace(key).digest == key.digest
    touched = {field for change in changed.values() for field in change}
    assert touched == {field.name for field in dataclasses.fields(TokenKey)}


def test_read_back_whole(key, chatml, build):
    """The second time nothing is built, and rows, drops, examples and the count of escapes are the same."""
    built = cached_rows(key, chatml, build)
    assert 0 < len(built.rows) < len(ITEMS) and built.dropped.counts["too_long"] > 0
    assert built.num_escaped == len(ITEMS)
    read = cached_rows(key, chatml, build)
    assert build.calls == 1
    assert read == built
    assert isinstance(read.rows[0].ids, tuple) and isinstance(read.rows[0].mask[0], bool)


def test_pairs_read_back(key, chatml):
    asked = Message("user", "Q")
    preferences = [
        Preference(str(i), (asked, Message("assistant", "A" * i)), (asked, Message("assistant", "B")))
        for i in range(1, 5)
    ]
    key = dataclasses.replace(key, kind="pairs", train_on="last")
    wanted, _ = pair_rows(preferences, chatml, max_tokens=99)
    for _ in range(2):
        assert (
            cached_pairs(key, chatml, lambda: pair_rows(preferences, chatml, max_tokens=99)).pairs == wanted
        )
    assert cached_pairs(key, chatml, lambda: pytest.fail("built twice")).pairs == wanted


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:-3] + b"\x01\x02\x03"),
        lambda path: path.write_bytes(b'{"sha256": 5}'),
        lambda path: path.write_bytes(b"[]"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damage_is_built_again(key, chatml, build, folder, damage, suffix):
    built = cached_rows(key, chatml, build)
    damage(folder / f"{key.digest}{suffix}")
    assert cached_rows(key, chatml, build) == built
    assert build.calls == 2
    assert cached_rows(key, chatml, build) == built  # and is whole again
    assert build.calls == 2


def test_nothing_is_kept_of_a_failed_build(key, chatml, folder):
    def fails():
        raise DataError("no")

    with pytest.raises(DataError):
        cached_rows(key, chatml, fails)
    assert not folder.exists() or not list(folder.iterdir())


def test_an_interrupted_write_leaves_no_part(key, chatml, build, folder, monkeypatch):
    """Part of T55: an interruption before the last step leaves nothing that could be taken for rows."""
    import os

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached_rows(key, chatml, build)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(key, chatml, build, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set POSTTRAIN_CACHE to a folder that can be written"):
        cached_rows(key, chatml, build)


def test_a_key_of_another_renderer(key, tulu, build):
    with pytest.raises(ValueError, match="another renderer"):
        cached_rows(key, tulu, build)


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("POSTTRAIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "posttrain" / "tokenised"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "posttrain" / "tokenised"


def test_no_rows_is_a_value_too(key, chatml):
    built = cached_rows(key, chatml, lambda: ([], Dropped({"too_long": 2}, ("x",))))
    assert cached_rows(key, chatml, lambda: pytest.fail("built twice")) == built
