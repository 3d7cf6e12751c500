"""Attention over cached keys, by the formula."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.rollout.engine.attend import attend, length_bias

ROWS, KEYS, SIZE = 3, 40, 8


def plainly(query, key, value, lengths):
    """One row and head at a time: softmax(q k / sqrt(D)) v over the row's own keys, in float64."""
    rows, heads, size = query.shape
    shared = heads // key.shape[1]
    out = torch.empty(rows, heads, size, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            keys, values = (x[row, head // shared, : lengths[row]].double() for x in (key, value))
            scores = keys @ query[row, head].double() / math.sqrt(size)
            out[row, head] = torch.softmax(scores, 0) @ values
    return out.reshape(rows, heads * size)


@pytest.mark.parametrize("heads", [2, 4, 6])
@pytest.mark.parametrize("lengths", [(40, 40, 40), (1, 17, 40), (3, 2, 1)])
def test_attention_by_the_formula(heads, lengths):
    """Grouped heads and unequal lengths; keys beyond a row's length, however large, do not count."""
    query = torch.randn(ROWS, heads, SIZE)
    key, value = torch.randn(ROWS, 2, KEYS, SIZE), torch.randn(ROWS, 2, KEYS, SIZE)
    for row, length in enumerate(lengths):
        key[row, :, length:] = 1e6
        value[row, :, length:] = 1e6
    bias = length_bias(torch.tensor(lengths), KEYS, torch.float32)
    found = attend(query, key, value, bias)
    expected = plainly(query, key, value, lengths)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_attention_reads_part_of_a_larger_cache():
    """The cache is longer than what is attended over: strided keys give what dense ones give."""
    query, key, value = torch.randn(ROWS, 4, SIZE), *torch.randn(2, ROWS, 2, KEYS, SIZE)
    lengths = torch.tensor([5, 9, 16])
    bias = length_bias(lengths, 16, torch.float32)
    part = attend(query, key[:, :, :16], value[:, :, :16], bias)
    dense = attend(query, key[:, :, :16].clone(), value[:, :, :16].clone(), bias)
    assert torch.equal(part, dense)


def test_length_bias_by_hand():
    bias = length_bias(torch.tensor([1, 3, 2]), 3, torch.float32)
    inf = float("-inf")
    assert bias.shape == (3, 1, 1, 3)
    assert bias[:, 0, 0].tolist() == [[0, inf, inf], [0, 0, 0], [0, 0, inf]]


def test_no_key_is_hidden_when_every_row_is_full():
    assert not length_bias(torch.tensor([3, 3]), 3, torch.float32).any()
