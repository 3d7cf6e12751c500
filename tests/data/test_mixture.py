"""How many rows of each source, and which."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from posttrain.data.mixture import Part, draw, mix, num_wanted
from posttrain.errors import DataError, RecipeError
from posttrain.records import Conversation, Message


def part(name, num_rows, amount=1.0, *, prefix=None, sha256=None):
    prefix = name if prefix is None else prefix
    items = [Conversation(f"{prefix}{i}", (Message("assistant", f"{name} {i}"),)) for i in range(num_rows)]
    return Part(name, items, sha256 or f"sha of {name} {num_rows}", amount, licence="mit")


def texts(items):
    return [item.messages[0].content for item in items]


@pytest.mark.parametrize(
    ("amount", "num_rows", "wanted"),
    [
        (1, 100, 1),  # one row ...
        (1.0, 100, 100),  # ... and all of them
        (250, 100, 250),
        (0.5, 5, 2),  # rounded down, as the reference's int()
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (1.5, 3, 4),
        (3.0, 7, 21),
        (0.001, 100, 0),
    ],
)
def test_num_wanted(amount, num_rows, wanted):
    """The type decides: an int counts, a float multiplies."""
    assert num_wanted(amount, num_rows) == wanted


@pytest.mark.parametrize("amount", [0, -1, 0.0, -0.5, float("nan"), float("inf"), True])
def test_amounts_that_mean_nothing(amount):
    with pytest.raises(RecipeError, match="must be a positive count"):
        num_wanted(amount, 10)


@pytest.mark.parametrize(("num_rows", "wanted"), [(10, 3), (10, 10), (10, 27), (1, 4), (7, 14), (100, 190)])
def test_draw(num_rows, wanted):
    """wanted // rows full copies in order, then wanted % rows different rows, without replacement."""
    drawn = draw(num_rows, wanted, seed=[1])
    copies, rest = wanted // num_rows, wanted % num_rows
    assert drawn[: copies * num_rows] == [*range(num_rows)] * copies
    tail = drawn[copies * num_rows :]
    assert len(tail) == rest and len(set(tail)) == rest and tail == sorted(tail)
    assert set(tail) <= set(range(num_rows))


def test_a_sample_is_no_head():
    """Over many seeds every row is drawn about equally often: 30 of 100, 400 times, 120 +- 5 sigma (46)."""
    counts = Counter(i for seed in range(400) for i in draw(100, 30, seed=[seed]))
    assert set(counts) == set(range(100))
    assert all(74 < count < 166 for count in counts.values())


def test_mix_counts_and_order():
    items, record = mix([part("a", 10, 3), part("b", 4, 0.5), part("c", 3, 2.0)], seed=5)
    names = [text.split()[0] for text in texts(items)]
    assert names == ["a"] * 3 + ["b"] * 2 + ["c"] * 6
    assert texts(items)[5:] == ["c 0", "c 1", "c 2"] * 2
    assert [(p.name, p.rows_read, p.rows_used, p.amount) for p in record.parts] == [
        ("a", 10, 3, 3),
        ("b", 4, 2, 0.5),
        ("c", 3, 6, 2.0),
    ]
    assert record.seed == 5 and record.parts[0].sha256 == "sha of a 10" and record.parts[0].licence == "mit"
    again = json.loads(json.dumps(record.as_dict()))
    assert again["parts"][2]["rows_used"] == 6


def test_same_seed_same_rows():
    parts = [part("a", 50, 10), part("b", 50, 0.2)]
    assert mix(parts, seed=1) == mix(parts, seed=1)
    assert texts(mix(parts, seed=1)[0]) != texts(mix(parts, seed=2)[0])


def test_a_part_does_not_depend_on_the_others():
    """Moving or adding sources leaves each one's share as it was."""
    a, b, c = part("a", 50, 10), part("b", 50, 10), part("c", 50, 10)
    alone = texts(mix([b], seed=1)[0])
    assert texts(mix([a, b], seed=1)[0])[10:] == alone
    assert texts(mix([b, c, a], seed=1)[0])[:10] == alone
    assert [t.split()[1] for t in texts(mix([a], seed=1)[0])] != [t.split()[1] for t in alone]


def test_the_same_source_twice_is_drawn_anew():
    one, two = part("a", 1000, 100), part("a", 1000, 100)
    items, _ = mix([one, two], seed=1)
    assert texts(items)[:100] != texts(items)[100:]


def test_ids_that_two_sources_share_are_told_apart():
    """Part of T26: one id never means two different rows; copies of one row keep its id."""
    items, _ = mix([part("a", 2, 2.0, prefix="x"), part("b", 2, prefix="x")], seed=1)
    assert [item.id for item in items] == ["x0", "x1", "x0", "x1", "2/x0", "2/x1"]
    by_id = {}
    assert all(by_id.setdefault(item.id, item.messages) == item.messages for item in items)


def test_nothing_to_mix():
    with pytest.raises(DataError, match="b has no rows"):
        mix([part("a", 2), part("b", 0)], seed=1)
    with pytest.raises(DataError, match=r"amount 0.1 of a \(5 rows\) is no row"):
        mix([part("a", 5, 0.1)], seed=1)
