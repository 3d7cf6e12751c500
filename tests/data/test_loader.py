"""The order of rows, and going on with it."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

from posttrain.data.loader import Loader
from posttrain.errors import CheckpointError


def test_each_epoch_is_a_permutation():
    batches = list(Loader(10, 4, seed=1, epochs=3))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[row for batch in batches[i : i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] != list(range(10))


def test_order_is_that_of_numpy():
    """The permutation of epoch e under seed s is Generator(PCG64([s, e])).permutation, and stays so."""
    loader = Loader(100, 100, seed=7)
    for epoch in range(3):
        wanted = np.random.Generator(np.random.PCG64([7, epoch])).permutation(100)
        assert next(loader) == wanted.tolist()


def test_order_does_not_depend_on_batch_size():
    one, many = Loader(12, 1, seed=3, epochs=2), Loader(12, 5, seed=3, epochs=2)
    assert [i for batch in one for i in batch] == [i for batch in many for i in batch]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("stop", range(9))
def test_resume_equals_uninterrupted(stop, drop_last):
    """Closes T54 for the order of rows: stopping after any batch, through a file, changes nothing."""
    whole = list(Loader(10, 4, seed=5, epochs=3, drop_last=drop_last))
    first = Loader(10, 4, seed=5, epochs=3, drop_last=drop_last)
    before = list(islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    assert set(state) == {"seed", "epoch", "offset"}
    second = Loader(10, 4, seed=5, epochs=3, drop_last=drop_last)
    second.load_state_dict(state)
    assert before + list(second) == whole


def test_state_can_go_back():
    loader = Loader(10, 3, seed=5)
    next(loader)
    state = loader.state_dict()
    after = list(islice(loader, 9))
    loader.load_state_dict(state)
    assert list(islice(loader, 9)) == after


def test_drop_last():
    loader = Loader(10, 4, seed=1, epochs=2, drop_last=True)
    assert loader.batches_per_epoch == 2
    assert [len(batch) for batch in loader] == [4, 4, 4, 4]
    assert Loader(10, 4, seed=1).batches_per_epoch == 3
    assert Loader(8, 4, seed=1).batches_per_epoch == 2
    full = Loader(8, 4, seed=1, epochs=1, drop_last=True)
    assert full.batches_per_epoch == 2 == len(list(full))
    assert list(Loader(5, 2, seed=1, epochs=0)) == []


def test_endless():
    assert len(list(islice(Loader(3, 2, seed=1), 1000))) == 1000


@pytest.mark.parametrize(
    "state",
    [
        {"seed": 2, "epoch": 0, "offset": 0},
        {"seed": 1, "epoch": 0, "offset": 10},
        {"seed": 1, "epoch": 0, "offset": -1},
        {"seed": 1, "epoch": -1, "offset": 0},
    ],
)
def test_states_of_other_loaders(state):
    with pytest.raises(CheckpointError):
        Loader(10, 4, seed=1).load_state_dict(state)


def test_impossible_sizes():
    for arguments in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            Loader(*arguments, seed=1)
    with pytest.raises(ValueError, match="more than the 3 rows"):
        Loader(3, 4, seed=1, drop_last=True)
