"""Drawing: the published generator, the right distribution, and log-probabilities that belong to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.rollout.engine.draw import draw, uniforms
from posttrain.rollout.sampler import Sampling
from posttrain.train.seeds import seed_of

VOCAB = 608
"""Two blocks and a half of the two-step search."""

LAST = float(np.nextafter(np.float32(1), np.float32(0)))
"""The largest float32 below 1."""


def seeds_of(num: int) -> np.ndarray:
    return np.array([seed_of("draw", i) for i in range(num)], np.uint64)


def stream(num: int, index: int = 0) -> torch.Tensor:
    """(num,) float32 uniforms, one from each of `num` streams."""
    return torch.from_numpy(uniforms(seeds_of(num), np.full(num, index, np.uint64)).astype(np.float32))


def random_logits(vocab: int = VOCAB, spread: float = 1.5) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(8)) * spread


def assert_distributed(ids: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square at one in a thousand; cells that expect fewer than five draws are pooled."""
    counts = np.bincount(ids.numpy(), minlength=len(probabilities)).astype(float)
    expected = probabilities.double().numpy() / probabilities.double().sum().item() * len(ids)
    rare = expected < 5
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 1e-9:
        assert counts[-1] == 0
        counts, expected = counts[:-1], expected[:-1]
    if len(expected) == 1:
        assert counts.tolist() == expected.tolist()
        return
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_uniforms_are_splitmix64():
    """The first outputs for seed 1234567 as published with the generator (Vigna, splitmix64.c)."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = uniforms(np.full(5, 1234567, np.uint64), np.arange(5, dtype=np.uint64))
    assert found.tolist() == [(output >> 11) / 2**53 for output in published]


@pytest.mark.parametrize("seed", [0, 1, 2**62, 2**63 - 1])
def test_uniforms_lie_in_the_unit_interval_and_fill_it(seed):
    found = uniforms(np.full(20_000, seed, np.uint64), np.arange(20_000, dtype=np.uint64))
    assert ((found >= 0) & (found < 1)).all()
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(20_000)


def test_streams_of_neighbouring_seeds_are_unrelated():
    """A seed that is another's plus one must not give that one's stream a step later."""
    ahead = uniforms(np.arange(1, 2001, dtype=np.uint64), np.zeros(2000, np.uint64))
    later = uniforms(np.arange(2000, dtype=np.uint64), np.ones(2000, np.uint64))
    assert not np.isin(ahead, later).any()
    assert stats.kstest(ahead, "uniform").pvalue > 1e-3


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_uniforms_do_not_depend_on_the_batch(pairs):
    seeds, indices = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    together = uniforms(seeds, indices)
    single = [uniforms(seeds[i : i + 1], indices[i : i + 1])[0] for i in range(len(pairs))]
    assert together.tolist() == single


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_the_softmax(temperature, dtype):
    """20,000 streams, one draw each; bfloat16 on a CPU goes through the compiled kernel. Closes T38."""
    logits = random_logits().to(dtype)
    ids, logprobs = draw(logits.expand(20_000, -1), Sampling(temperature=temperature), stream(20_000))
    exact = torch.log_softmax(logits.double() / temperature, 0)
    assert_distributed(ids, exact.exp())
    torch.testing.assert_close(logprobs.double(), exact[ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_p=0.6),
        Sampling(top_k=7),
        Sampling(top_p=0.6, top_k=9, temperature=1.5),
        Sampling(top_p=0.9, temperature=0.5),
        Sampling(top_k=1),
        Sampling(top_p=1e-6),
        Sampling(top_k=10 * VOCAB),
    ],
    ids=repr,
)
def test_truncated_draws_follow_the_renormalised_set(sampling):
    """Support, frequencies and recorded log-probabilities are those of one distribution. Closes T39.

    The set by its definition: the k likeliest, of those the fewest whose renormalised mass reaches top_p.
    """
    logits = random_logits(spread=2.0)
    likely = torch.softmax(logits.double() / sampling.temperature, 0)
    order = likely.argsort(descending=True).tolist()
    order = order[: sampling.top_k] if sampling.top_k else order
    support: list[int] = []
    while likely[support].sum() < sampling.top_p * likely[order].sum() and len(support) < len(order):
        support.append(order[len(support)])
    exact = torch.zeros(VOCAB, dtype=torch.float64)
    exact[support] = likely[support] / likely[support].sum()

    ids, logprobs = draw(logits.expand(5_000, -1), sampling, stream(5_000))
    assert set(ids.tolist()) <= set(support)
    assert_distributed(ids, exact)
    torch.testing.assert_close(logprobs.double(), exact[ids].log(), rtol=1e-5, atol=1e-5)
    seen = dict(zip(ids.tolist(), logprobs.double().exp().tolist(), strict=True))
    assert sum(seen.values()) == pytest.approx(1, abs=1e-4 if len(seen) == len(support) else 0.1)


def test_the_whole_interval_is_shared_out_by_the_cumulative_distribution():
    """Probabilities 1/8, 0, 1/2, 3/8: the token changes exactly at 1/8 and 5/8, by hand."""
    logits = torch.tensor([1 / 8, 0.0, 1 / 2, 3 / 8]).log()
    points = torch.tensor([0.0, 0.12, 0.125, 0.3, 0.62, 0.625, 0.9, LAST])
    ids, logprobs = draw(logits.expand(8, -1), Sampling(), points)
    assert ids.tolist() == [0, 0, 2, 2, 2, 3, 3, 3]
    expected = torch.tensor([1 / 8, 1 / 8, 1 / 2, 1 / 2, 1 / 2, 3 / 8, 3 / 8, 3 / 8])
    torch.testing.assert_close(logprobs.exp(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_likeliest_and_reports_its_log_probability(dtype):
    logits = torch.stack([random_logits(), random_logits().flip(0)]).to(dtype)
    ids, logprobs = draw(logits, Sampling(temperature=0.0), torch.tensor([0.0, LAST]))
    assert ids.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(logprobs, torch.log_softmax(logits.float(), 1).amax(1))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.3), Sampling(top_p=0.9), Sampling(top_k=5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_logits(sampling, dtype):
    """The certain token at both ends of the interval, wherever it lies in its block, with log-probability 0."""
    places = [0, 1, 255, 256, 511, 512, VOCAB - 1]
    logits = torch.full((2 * len(places), VOCAB), float("-inf"), dtype=dtype)
    for row, place in enumerate(places * 2):
        logits[row, place] = -3.0
    points = torch.tensor([0.0] * len(places) + [LAST] * len(places))
    ids, logprobs = draw(logits, sampling, points)
    assert ids.tolist() == places * 2
    assert not logprobs.any()


def sparse_cases() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows where few tokens have any mass, each with uniforms at and beside every step of its distribution."""
    generator = torch.Generator().manual_seed(6)
    rows, points = [], []
    for _ in range(60):
        logits = torch.full((VOCAB,), float("-inf"))
        live = torch.randperm(VOCAB, generator=generator)[:6]
        logits[live] = (torch.randn(6, generator=generator) * 3).bfloat16().float()
        steps = torch.softmax(logits, 0).cumsum(0)[live].numpy()
        near = [steps, np.nextafter(steps, np.float32(0)), np.nextafter(steps, np.float32(1))]
        for point in np.clip(np.concatenate([*near, [0.0, LAST]]).astype(np.float32), 0, LAST):
            rows.append(logits)
            points.append(float(point))
    return torch.stack(rows), torch.tensor(points)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_without_mass_is_never_drawn(dtype):
    """Rounding at the steps of the distribution must not leave it: its log-probability would be -inf."""
    logits, points = sparse_cases()
    ids, logprobs = draw(logits.to(dtype), Sampling(), points)
    assert logits.gather(1, ids[:, None]).isfinite().all()
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_uniform_that_rounds_up_to_one(dtype):
    """float64 numbers just below 1 become float32 1; the draw must stay among the tokens that have mass."""
    logits = torch.full((1, VOCAB), float("-inf"), dtype=dtype)
    logits[0, 3], logits[0, 5] = 0.0, 0.0
    for sampling in (Sampling(), Sampling(top_k=2), Sampling(top_p=0.99)):
        ids, logprobs = draw(logits, sampling, torch.ones(1))
        assert ids.item() in (3, 5)
        assert logprobs.exp().item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_meet(dtype):
    """A row's draw does not depend on the rows beside it, of which there are more than are drawn at once."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(37, VOCAB, generator=generator).to(dtype)
    points = stream(37)
    for sampling in (Sampling(), Sampling(top_p=0.5), Sampling(temperature=0.0)):
        ids, logprobs = draw(logits, sampling, points)
        for row in (0, 15, 16, 36):
            one_id, one_logprob = draw(logits[row : row + 1], sampling, points[row : row + 1])
            assert one_id.item() == ids[row]
            assert one_logprob.item() == logprobs[row]


def test_logits_are_left_as_they_were():
    logits = random_logits().repeat(20, 1)
    before = logits.clone()
    for sampling in (Sampling(temperature=0.7), Sampling(top_p=0.5, top_k=4), Sampling(temperature=0)):
        draw(logits, sampling, stream(20))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_do_not_overflow(dtype):
    """Closes T17."""
    logits = (random_logits() * 1e4).to(dtype)
    ids, logprobs = draw(logits.expand(50, -1), Sampling(), stream(50))
    assert set(ids.tolist()) == {logits.argmax().item()}
    assert logprobs.abs().max() < 1e-6
