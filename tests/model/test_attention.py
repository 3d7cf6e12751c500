"""Attention over a tree of segments, forwards and backwards, against the formula row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from posttrain.model import attention as module
from posttrain.model.attention import Layout, attention
from posttrain.model.tree import plant

CPU = torch.device("cpu")


def rows_with(*shapes: tuple[int, int]) -> list[list[int]]:
    """For each (prompt length, number of completions): rows of one prompt, completions of unlike length."""
    stream = np.random.default_rng(3)
    rows = []
    for length, completions in shapes:
        prompt = stream.integers(0, 1000, length).tolist()
        rows += [prompt + stream.integers(0, 1000, 3 + 17 * i).tolist() for i in range(completions)]
    return rows


CASES = {
    "one row": rows_with((5, 1)),
    "unlike rows": rows_with((3, 1), (70, 1), (31, 1)),
    "groups": rows_with((40, 4), (18, 3), (9, 2)),
    "full rows": rows_with((29, 1), (29, 1)),
    "long": rows_with((300, 3), (20, 2)),
    "nested": [[*range(20), *range(100, 120), 5], [*range(20), *range(100, 120), 6, 7], [*range(20), 8]],
}


def by_hand(query, key, value, rows, places):
    """Softmax attention of each row by itself, one query at a time."""
    out = [None] * len(query)
    repeats = query.shape[1] // key.shape[1]
    start = 0
    for row in rows:
        line = places[start : start + len(row)]
        start += len(row)
        for end, token in enumerate(line, start=1):
            keys = key[line[:end]].repeat_interleave(repeats, 1)
            values = value[line[:end]].repeat_interleave(repeats, 1)
            scores = torch.einsum("hd,khd->hk", query[token], keys) / math.sqrt(query.shape[2])
            out[token] = torch.einsum("hk,khd->hd", scores.softmax(1), values)
    return torch.stack(out)


def inputs(rows, dtype, heads=4, kv_heads=2, size=8):
    ids = np.concatenate([np.asarray(row) for row in rows])
    tree = plant(ids, [len(row) for row in rows])
    generator = torch.Generator().manual_seed(5)
    made = [
        torch.randn(len(tree.tokens), h, size, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
        for h in (heads, kv_heads, kv_heads)
    ]
    return tree, made


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (9, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients(case, heads, dtype, tolerance):
    rows = CASES[case]
    tree, made = inputs(rows, dtype, *heads)
    layout = Layout(tree, dtype, CPU)
    weight = torch.randn(made[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(
        dtype
    )
    found = attention(*made, layout)
    expected = by_hand(*made, rows, tree.places.tolist())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    got = torch.autograd.grad((found * weight).sum(), made)
    wanted = torch.autograd.grad((expected * weight).sum(), made)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("case", ["groups", "long", "nested"])
def test_the_two_backward_passes_agree(case, monkeypatch):
    """The kernel's backward pass on every bucket, the plain formula on every bucket, and autograd's own."""
    found = []
    for keys in (0, 1 << 20):
        monkeypatch.setattr(module, "_DENSE_KEYS", keys)
        tree, made = inputs(CASES[case], torch.float32)
        out = attention(*made, Layout(tree, torch.float32, CPU))
        found.append(torch.autograd.grad(out.square().sum(), made))
    tree, made = inputs(CASES[case], torch.float32)
    plain = module._plain(*made, Layout(tree, torch.float32, CPU))
    found.append(torch.autograd.grad(plain.square().sum(), made))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_gradients_are_as_good_as_the_kernels(monkeypatch):
    """Both backward passes against float64 gradients of the same rounded inputs: neither is far worse."""
    rows = CASES["groups"]
    tree, made = inputs(rows, torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in made]
    truth = by_hand(*exact, rows, tree.places.tolist())
    weight = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((truth * weight).sum(), exact)
    errors = {}
    for keys in (0, 1 << 20):
        monkeypatch.setattr(module, "_DENSE_KEYS", keys)
        out = attention(*made, Layout(tree, torch.bfloat16, CPU))
        got = torch.autograd.grad((out * weight.bfloat16()).sum(), made)
        errors[keys] = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)]
    for kernel, dense in zip(errors[0], errors[1 << 20], strict=True):
        assert dense < 1.5 * kernel + 1e-3
        assert dense < 0.02


def test_buckets_hold_every_token_once_and_waste_little():
    """One row of 900 tokens must not pad forty of 20 to its length."""
    stream = np.random.default_rng(0)
    rows = [
        stream.integers(0, 1000, 900).tolist(),
        *(stream.integers(0, 1000, 20).tolist() for _ in range(40)),
    ]
    ids = np.concatenate([np.asarray(row) for row in rows])
    tree = plant(ids, [len(row) for row in rows])
    layout = Layout(tree, torch.float32, CPU)
    held = torch.cat([bucket.tokens for bucket in layout.buckets])
    assert sorted(held.tolist()) == list(range(len(tree.tokens)))
    assert sum(len(b.queries) * len(b.keys) // b.rows for b in layout.buckets) < 1.2 * (928**2 + 40 * 32**2)
