"""Decoding over buffers that stay, as a GPU replays it, gives what plain decoding gives."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from posttrain.model.decoder import Angles, Shape
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.step import SteadySteps, can_record, padded_rows
from posttrain.rollout.engine.weights import EngineWeights
from posttrain.rollout.sampler import Request, Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
"""Keys and values of one token of the tiny models: 2 layers, 2 key heads of 8, float32."""


@pytest.mark.parametrize("max_rows", [256, 17, 1])
def test_greedy_tokens_are_those_of_plain_steps(policy, requests, max_rows):
    """Rows join and leave, are padded to a size, and attend beyond their keys: no token and no number changes."""
    steady = policy.engine(steady=True, max_rows=max_rows).generate(requests, GREEDY)
    plain = policy.engine(steady=False, max_rows=max_rows).generate(requests, GREEDY)
    for found, expected in zip(steady, plain, strict=True):
        assert [c.ids for c in found] == [c.ids for c in expected]
        assert [(c.text, c.stop_reason) for c in found] == [(c.text, c.stop_reason) for c in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


def test_greedy_equals_hugging_face(policy, requests):
    prompts = [request.prompt_ids for request in requests[:8]]
    found = policy.engine(steady=True).generate([Request(prompt, (1,)) for prompt in prompts], GREEDY)
    assert [group[0].ids for group in found] == [policy.greedy([prompt], 24)[0] for prompt in prompts]


def test_sampled_tokens_are_those_of_each_sample_alone(policy, requests, alone):
    found = policy.engine(steady=True, max_rows=11).generate(requests, Sampling(max_new_tokens=24))
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in alone]


def test_bfloat16_with_the_kernels_of_the_cpu(policy, requests):
    """Beside PyTorch's in a cache that stays; whatever rows are filled up with, a row's sums are its own."""
    steady = policy.engine(steady=True, dtype=torch.bfloat16).generate(requests, GREEDY)
    plain = policy.engine(steady=False, dtype=torch.bfloat16).generate(requests, GREEDY)
    same = [a.ids == b.ids for x, y in zip(steady, plain, strict=True) for a, b in zip(x, y, strict=True)]
    # products of another number of rows may round otherwise, and a near tie of two tokens then parts
    assert np.mean(same) > 0.9


def test_late_comers_cancellations_and_limits_of_all_lengths(policy):
    """The cache moves as longer limits come, keeps to its bound, and is given back at the end."""
    stream, gib = random.Random(3), 1500 * TOKEN_BYTES / 2**30
    engine = policy.engine(steady=True, max_rows=24, cache_gib=gib)
    waiting = [
        (
            Request(tuple(stream.randrange(5, 300) for _ in range(stream.randrange(1, 60))), (number,)),
            Sampling(max_new_tokens=stream.randrange(1, 60)),
        )
        for number in range(80)
    ]
    asked, done, cancelled, sizes = dict(enumerate(waiting)), {}, set(), set()
    while waiting or engine.busy:
        for _ in range(min(len(waiting), stream.randrange(0, 5))):
            engine.submit(*waiting.pop(0))
        done.update(engine.step()[1])
        sizes.add(engine.cache_bytes)
        if engine.busy and stream.random() < 0.05:
            handle = stream.choice([h for h in asked if h not in done])
            if engine.cancel(handle) is not None:
                cancelled.add(handle)
    assert done.keys() | cancelled == set(asked)
    assert len(cancelled) > 2
    assert len(sizes) > 3  # it grew on the way
    assert max(sizes) <= gib * 2**30
    assert engine.cache_bytes == 0
    for handle in sorted(done)[::9]:
        request, sampling = asked[handle]
        assert done[handle][0].ids == policy.engine(steady=False).generate([request], sampling)[0][0].ids


def test_new_weights_are_used(policy, requests):
    engine = policy.engine(steady=True)
    before = engine.generate(requests[:2], GREEDY)
    changed = {name: weight.roll(1, 0) for name, weight in policy.model.state_dict().items()}
    engine.load(changed, version=1)
    after = engine.generate(requests[:2], GREEDY)
    plain = policy.engine(steady=False)
    plain.load(changed, version=1)
    assert [[c.ids for c in g] for g in after] == [
        [c.ids for c in g] for g in plain.generate(requests[:2], GREEDY)
    ]
    assert [[c.ids for c in g] for g in after] != [[c.ids for c in g] for g in before]


def test_sizes_by_hand():
    assert [padded_rows(rows) for rows in (1, 2, 3, 5, 17, 32, 33, 64, 65, 256)] == [
        1,
        2,
        4,
        8,
        32,
        32,
        64,
        64,
        96,
        256,
    ]


def test_without_a_gpu_nothing_is_recorded(monkeypatch):
    assert not can_record(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert can_record(torch.device("cuda")) and not can_record(torch.device("cpu"))
    monkeypatch.setenv("POSTTRAIN_GRAPHS", "0")
    assert not can_record(torch.device("cuda"))


class Recorded(SteadySteps):
    """Steps that note their turns; what is recorded runs again when it is replayed, over the same buffers."""

    def __init__(self, *model) -> None:
        super().__init__(*model)
        self.turns: list[str] = []
        self._stream = object()

    def _aside(self, size) -> None:
        self.turns.append("plain")
        self._decode(size)

    def _record(self, size):
        self.turns.append("record")
        outer, buffers = self, (size.inputs.data_ptr(), size.logits.data_ptr(), self._cache.keys.data_ptr())

        class Graph:
            def replay(self) -> None:
                now = size.inputs.data_ptr(), size.logits.data_ptr(), outer._cache.keys.data_ptr()
                assert now == buffers  # a graph reads and writes where it was recorded
                outer.turns.append("replay")
                outer._decode(size)

        return Graph()


def test_what_a_graph_reads_is_not_moved_under_it(policy):
    """A larger cache and other weights are other memory: the next step of that size is not a replay."""
    config, cpu = policy.model.config, torch.device("cpu")
    shape, angles = Shape.of(config), Angles(config, cpu)
    state = policy.model.state_dict()
    weights = [
        EngineWeights.of(state, shape, dtype=torch.float32, device=cpu, rows=4) for state in (state, state)
    ]
    steps = Recorded(shape, angles, Cache(shape, dtype=torch.float32, device=cpu), cpu)
    changes = (
        lambda: None,
        lambda: steps.load(weights[1]),
        lambda: steps.reserve(2, 20, longest=300, most_rows=lambda: 2),
        lambda: steps.reserve(2, 20, longest=200, most_rows=lambda: 2),
        lambda: steps.reserve(3, 20, longest=200, most_rows=lambda: 3),
    )
    steps.load(weights[0])
    steps.reserve(2, 20, longest=150, most_rows=lambda: 2)
    next_turns = []
    for change in changes:
        for _ in range(3):
            steps([5, 6], [20, 7], [None] * 2)
        change()
        steps.turns.clear()
        steps([5, 6], [20, 7], [None] * 2)
        next_turns.append(steps.turns[0])
    assert next_turns == ["replay", "plain", "plain", "replay", "plain"]


def test_a_size_runs_plainly_twice_is_recorded_and_then_replayed(policy, requests, monkeypatch):
    monkeypatch.setattr("posttrain.rollout.engine.engine.SteadySteps", Recorded)
    engine = policy.engine(steady=True)
    engine.generate([Request((5, 6, 7), (1, 2, 3))], Sampling(max_new_tokens=7, temperature=1e-3))
    assert engine._steps.turns[:5] == ["plain", "plain", "record", "replay", "replay"]
    found = engine.generate(requests, GREEDY)
    assert engine._steps.turns.count("record") > 1
    expected = policy.engine(steady=False).generate(requests, GREEDY)
    assert [[c.ids for c in g] for g in found] == [[c.ids for c in g] for g in expected]
