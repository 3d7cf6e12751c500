"""Drawing: the published generator, the right distribution, and log-probabilities that belong to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from posttrain.rollout.engine.draw import draw, noise, uniforms
from posttrain.rollout.sampler import Sampling
from posttrain.train.seeds import seed_of

VOCAB = 608
"""Two blocks and a half of those that the kernel sums, and whole lanes; fewer by one go the plain way."""
WORD = 2**32


def seeds_of(num: int) -> np.ndarray:
    return np.array([seed_of("draw", i) for i in range(num)], np.uint64)


def stream(num: int, index: int = 0) -> torch.Tensor:
    """(num,) int64 of random bits, one from each of `num` streams."""
    return torch.from_numpy(noise(seeds_of(num), np.full(num, index, np.uint64)))


def fractions_of(seeds: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(A,) float64 in [0, 1): the upper 53 bits of the noise."""
    return (noise(seeds, indices).view(np.uint64) >> np.uint64(11)) * 2.0**-53


def mixed(token: int, bits: int) -> int:
    """The 32 bits that `uniforms` takes a token's number from, with Python's integers."""
    low, high = bits % WORD, bits // WORD % WORD
    x = (token * 0x9E3779B9 + low) % WORD
    x = (x ^ x >> 16) * 0x21F0AAAD % WORD
    x = (x ^ x >> 15 ^ high) * 0x735A2D97 % WORD
    return x ^ x >> 15


def bits_for(token: int, wanted: int) -> int:
    """Noise from which `token` gets the 32 bits `wanted`: `mixed` backwards, its upper half zero."""
    x = wanted ^ wanted >> 15 ^ wanted >> 30
    x = x * pow(0x735A2D97, -1, WORD) % WORD
    x = x ^ x >> 15 ^ x >> 30
    x = x * pow(0x21F0AAAD, -1, WORD) % WORD
    x = x ^ x >> 16
    return (x - token * 0x9E3779B9) % WORD


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


def test_noise_is_splitmix64():
    """The first outputs for seed 1234567 as published with the generator (Vigna, splitmix64.c)."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = noise(np.full(5, 1234567, np.uint64), np.arange(5, dtype=np.uint64))
    assert found.view(np.uint64).tolist() == published


@pytest.mark.parametrize("seed", [0, 1, 2**62, 2**63 - 1])
def test_a_stream_of_noise_is_uniform(seed):
    found = fractions_of(np.full(20_000, seed, np.uint64), np.arange(20_000, dtype=np.uint64))
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(20_000)


def test_streams_of_neighbouring_seeds_are_unrelated():
    """A seed that is another's plus one must not give that one's stream a step later."""
    ahead = fractions_of(np.arange(1, 2001, dtype=np.uint64), np.zeros(2000, np.uint64))
    later = fractions_of(np.arange(2000, dtype=np.uint64), np.ones(2000, np.uint64))
    assert not np.isin(ahead, later).any()
    assert stats.kstest(ahead, "uniform").pvalue > 1e-3


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_noise_does_not_depend_on_the_batch(pairs):
    seeds, indices = (np.array(column, np.uint64) for column in zip(*pairs, strict=True))
    together = noise(seeds, indices)
    single = [noise(seeds[i : i + 1], indices[i : i + 1])[0] for i in range(len(pairs))]
    assert together.tolist() == single


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_numbers_of_a_row_by_plain_integers(bits):
    found = uniforms(torch.tensor([bits]), 50)[0].double()
    expected = [((mixed(token, bits) >> 1) + 0.5) / 2**31 for token in range(50)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=0)


def test_numbers_are_uniform_among_tokens_and_among_rows():
    """And those of one token say nothing of the next one's, nor of its own in the next row."""
    found = uniforms(stream(400), 400).double()
    for numbers in (found[0], found[7], found[:, 0], found[:, 399], found.flatten()):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    for one, other in (
        (found[:, :-1], found[:, 1:]),
        (found[:-1], found[1:]),
        (found[:, :-16], found[:, 16:]),
    ):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 5 / 400
    # smallest and largest of a row of independent numbers are where order statistics have them
    assert stats.kstest(found.amin(1), stats.beta(1, 400).cdf).pvalue > 1e-3
    assert stats.kstest(found.amax(1), stats.beta(400, 1).cdf).pvalue > 1e-3


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


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB - 1], ids=["kernel", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_to_arrive_is_drawn(vocab, dtype):
    """Exponential times over probabilities, in float64 from the numbers that each token has."""
    logits = (torch.randn(500, vocab, generator=torch.Generator().manual_seed(3)) * 2).to(dtype)
    times = -torch.log1p(-uniforms(stream(500), vocab).double()) / logits.double().softmax(1)
    ids, logprobs = draw(logits, Sampling(), stream(500))
    assert ids.tolist() == times.argmin(1).tolist()
    exact = logits.double().log_softmax(1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [0.02, 0.3, 2.0])
def test_distributions_that_differ_little_draw_alike(shift):
    """How often both draw the same token, as known for this race (arXiv:1809.04052): the sum over i of
    1 / sum over j of max(p_j / p_i, q_j / q_i)."""
    one = random_logits(VOCAB)
    other = one + shift * torch.randn(VOCAB, generator=torch.Generator().manual_seed(4))
    p, q = one.double().softmax(0), other.double().softmax(0)
    same = (1 / torch.maximum(p / p[:, None], q / q[:, None]).sum(1)).sum().item()
    (ids, _), (others, _) = (draw(x.expand(20_000, -1), Sampling(), stream(20_000)) for x in (one, other))
    found = (ids == others).double().mean().item()
    assert abs(found - same) < 4 * math.sqrt(same * (1 - same) / 20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_likeliest_and_reports_its_log_probability(dtype):
    logits = torch.stack([random_logits(), random_logits().flip(0)]).to(dtype)
    ids, logprobs = draw(logits, Sampling(temperature=0.0), stream(2))
    assert ids.tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(logprobs, torch.log_softmax(logits.float(), 1).amax(1))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.3), Sampling(top_p=0.9), Sampling(top_k=5)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_logits(sampling, dtype):
    """The certain token, wherever it lies in its block and however late it arrives, with log-probability 0."""
    places = [0, 1, 255, 256, 511, 512, VOCAB - 1]
    logits = torch.full((3 * len(places), VOCAB), float("-inf"), dtype=dtype)
    for row, place in enumerate(places * 3):
        logits[row, place] = -3.0
    # the latest possible, the earliest, and one between
    bits = [bits_for(place, wanted) for wanted in (WORD - 1, 0, 2**30) for place in places]
    numbers = uniforms(torch.tensor(bits), VOCAB)
    assert numbers[range(len(places)), places].tolist() == [1 - 2.0**-24] * len(places)
    ids, logprobs = draw(logits, sampling, torch.tensor(bits))
    assert ids.tolist() == places * 3
    assert not logprobs.any()


@pytest.mark.parametrize("vocab", [VOCAB, VOCAB - 1], ids=["kernel", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_without_mass_is_never_drawn(vocab, dtype):
    """Its log-probability would be -inf. Six tokens of a row have mass, and some of them arrive as late as can be."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.full((2000, vocab), float("-inf"))
    live = torch.rand(2000, vocab, generator=generator).argsort(1)[:, :6]
    logits.scatter_(1, live, torch.randn(2000, 6, generator=generator) * 3)
    late = torch.tensor([bits_for(int(tokens[0]), WORD - 1) for tokens in live[:1000]])
    ids, logprobs = draw(logits.to(dtype), Sampling(), torch.cat([late, stream(1000)]))
    assert logits.gather(1, ids[:, None]).isfinite().all()
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rare_tokens_come_as_often_as_they_should(dtype):
    """4,000 tokens share a thousandth, far below the first to arrive: their numbers are fine enough for them."""
    logits = torch.zeros(4096, dtype=dtype)
    logits[:96] = math.log(4000 * 999 / 96)
    share = logits.double().softmax(0)[96:].sum().item()
    ids = torch.cat([draw(logits.expand(5000, -1), Sampling(), stream(5000, i))[0] for i in range(20)])
    rare = (ids >= 96).sum().item()
    assert abs(rare - 100_000 * share) < 4 * math.sqrt(100_000 * share)
    assert len(set(ids[ids >= 96].tolist())) > 0.9 * rare


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
