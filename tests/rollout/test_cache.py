"""The key-value cache: growing, moving and counting."""

from __future__ import annotations

import pytest
import torch

from posttrain.model.decoder import Shape
from posttrain.rollout.engine.cache import Cache

SHAPE = Shape(
    family="llama",
    num_layers=3,
    hidden=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab=50,
    norm_eps=1e-5,
    tied=True,
)


@pytest.fixture
def cache() -> Cache:
    return Cache(SHAPE, dtype=torch.float32, device=torch.device("cpu"))


def fill(cache: Cache) -> tuple[torch.Tensor, torch.Tensor]:
    cache.keys.normal_()
    cache.values.normal_()
    return cache.keys.clone(), cache.values.clone()


def test_bytes_by_hand(cache):
    """Keys and values of 3 layers, 2 heads of 8 numbers: 96 numbers a position, 4 bytes or 2 each."""
    assert Cache.bytes_per_token(SHAPE, torch.float32) == 96 * 4
    assert Cache.bytes_per_token(SHAPE, torch.bfloat16) == 96 * 2
    assert cache.nbytes == 0
    cache.reserve(5, 40)
    assert cache.nbytes == cache.slots * cache.length * 96 * 4


def test_reserve_makes_room_and_keeps_what_is_there(cache):
    cache.reserve(2, 30)
    assert cache.slots >= 2
    assert cache.length >= 30
    keys, values = fill(cache)
    slots, length = cache.slots, cache.length
    cache.reserve(4, length + 1)
    assert cache.slots >= 4
    assert cache.length > length
    assert torch.equal(cache.keys[:, :slots, :, :length], keys)
    assert torch.equal(cache.values[:, :slots, :, :length], values)
    assert not cache.keys[:, slots:].any()
    assert not cache.values[:, :, :, length:].any()


def test_reserving_what_there_is_changes_nothing(cache):
    cache.reserve(3, 20)
    keys = cache.keys
    cache.reserve(2, 20)
    cache.reserve(3, 1)
    assert cache.keys is keys


def test_growing_token_by_token_copies_seldom(cache):
    copies = 0
    for length in range(1, 401):
        before = cache.keys
        cache.reserve(1, length)
        copies += cache.keys is not before
    assert copies <= 400 / 16


def test_put_starts_a_slot(cache):
    cache.reserve(2, 10)
    fill(cache)
    keys, values = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8)
    untouched = cache.keys[:, 0].clone(), cache.values[:, 1, :, 4:].clone()
    cache.put(1, keys, values)
    assert torch.equal(cache.keys[:, 1, :, :4], keys)
    assert torch.equal(cache.values[:, 1, :, :4], values)
    assert torch.equal(cache.keys[:, 0], untouched[0])
    assert torch.equal(cache.values[:, 1, :, 4:], untouched[1])


def test_move_copies_as_many_positions_as_asked(cache):
    cache.reserve(3, 10)
    keys, values = fill(cache)
    cache.move(2, 0, 7)
    for now, then in ((cache.keys, keys), (cache.values, values)):
        assert torch.equal(now[:, 0, :, :7], then[:, 2, :, :7])
        assert torch.equal(now[:, 0, :, 7:], then[:, 0, :, 7:])
        assert torch.equal(now[:, 1:], then[:, 1:])
    cache.move(1, 1, 7)
    assert torch.equal(cache.keys[:, 1], keys[:, 1])


def test_clear_gives_the_memory_back(cache):
    cache.reserve(3, 10)
    cache.clear()
    assert (cache.nbytes, cache.slots, cache.length) == (0, 0, 0)
    cache.reserve(1, 1)
    assert not cache.keys.any()
