"""Five hundred requests of mixed length through one engine, some of them given up on the way."""

from __future__ import annotations

import random

import pytest

from posttrain.rollout.sampler import Request, Sampling
from posttrain.train.seeds import seed_of

COUNT = 500


@pytest.fixture
def crowd() -> list[tuple[Request, Sampling]]:
    """Prompts of 1 to 90 tokens, half of them with a common start, 1 to 12 new tokens, one to three samples."""
    stream = random.Random(11)
    start = tuple(stream.randrange(5, 300) for _ in range(30))
    made = []
    for number in range(COUNT):
        own = tuple(stream.randrange(5, 300) for _ in range(stream.randrange(1, 60)))
        seeds = tuple(seed_of("crowd", number, i) for i in range(stream.randrange(1, 4)))
        sampling = Sampling(max_new_tokens=stream.randrange(1, 13))
        made.append((Request(start + own if stream.random() < 0.5 else own, seeds), sampling))
    return made


def test_five_hundred_requests_with_cancellations(policy, crowd):
    """All complete or are cancelled, in the order asked for; the cache keeps to its bound and is given back at
    the end; whoever shared their batch, a sample of requests gives the tokens it gives alone.
    """
    engine = policy.engine(max_rows=24, cache_gib=0.01)
    stream = random.Random(5)
    handles: list[int] = []
    done, cancelled, sizes = {}, {}, []
    waiting = list(crowd)
    while waiting or engine.busy:
        joining = min(len(waiting), stream.randrange(0, 12))
        handles += [engine.submit(*waiting.pop(0)) for _ in range(joining)]
        done.update(engine.step()[1])
        sizes.append(engine.cache_bytes)
        alive = [handle for handle in handles if handle not in done and handle not in cancelled]
        if alive and stream.random() < 0.15:
            victim = stream.choice(alive)
            cancelled[victim] = engine.cancel(victim)
    assert handles == sorted(handles)
    assert done.keys() | cancelled.keys() == set(handles)
    assert not done.keys() & cancelled.keys()
    assert len(handles) == COUNT
    assert len(cancelled) > 20
    assert max(sizes) <= 0.01 * 2**30
    assert engine.cache_bytes == 0
    for handle, (request, sampling) in zip(handles, crowd, strict=True):
        found = done.get(handle) or cancelled[handle]
        assert len(found) == len(request.seeds)
        if handle in done:
            assert all(c.stop_reason != "cancelled" for c in found)
        assert all(len(c.ids) <= sampling.max_new_tokens for c in found)
    for handle in stream.sample(sorted(done), 12):
        request, sampling = crowd[handles.index(handle)]
        (alone,) = policy.engine().generate([request], sampling)
        assert [(c.ids, c.text) for c in done[handle]] == [(c.ids, c.text) for c in alone]


def test_a_cancelled_request_has_the_start_of_what_it_would_have_said(policy, crowd):
    request = Request(crowd[0][0].prompt_ids, (1, 2))
    sampling = Sampling(max_new_tokens=40)
    engine = policy.engine()
    handle = engine.submit(request, sampling)
    for _ in range(5):
        engine.step()
    found = engine.cancel(handle)
    (whole,) = policy.engine().generate([request], sampling)
    for part, full in zip(found, whole, strict=True):
        assert part.ids == full.ids[: len(part.ids)]


def test_streams_at_the_same_time(policy, crowd):
    """Two streams that take turns: each sees all its own tokens, whoever makes the engine step."""
    sampling = Sampling(max_new_tokens=12)
    requests = [Request(request.prompt_ids, request.seeds[:1]) for request, _ in crowd[:2]]
    engine = policy.engine()
    streams = [engine.stream(request, sampling) for request in requests]
    seen: list[list[int]] = [[], []]
    open_streams = dict(enumerate(streams))
    while open_streams:
        for place, stream in list(open_streams.items()):
            token = next(stream, None)
            if token is None:
                del open_streams[place]
            else:
                seen[place].append(token.id)
    for request, ids in zip(requests, seen, strict=True):
        assert tuple(ids) == policy.engine().generate([request], sampling)[0][0].ids


def test_a_stream_beside_a_batch_leaves_the_batch_its_completions(policy, crowd):
    """A request that ends while another is streamed is still handed out by the next step."""
    sampling = Sampling(max_new_tokens=3)
    engine = policy.engine()
    handle = engine.submit(Request(crowd[0][0].prompt_ids, (7,)), sampling)
    list(engine.stream(Request(crowd[1][0].prompt_ids, (8,)), Sampling(max_new_tokens=20)))
    done = engine.step()[1]
    assert [c.ids for c in done[handle]] == [
        c.ids for c in policy.engine().generate([Request(crowd[0][0].prompt_ids, (7,))], sampling)[0]
    ]


@pytest.mark.parametrize("tokens", [1, 40, 100])
def test_a_short_request_that_joins_leaves_a_long_one_as_it_was(policy, tokens):
    """The cache gets another slot when it does, and must keep what the longer sample has in its own."""
    long, short = Request(tuple(range(5, 75)), (1,)), Request((7, 8, 9), (2,))
    engine = policy.engine()
    first = engine.submit(long, Sampling(max_new_tokens=150))
    done: dict[int, list] = {}
    for _ in range(tokens):
        done |= engine.step()[1]
    second = engine.submit(short, Sampling(max_new_tokens=20))
    while engine.busy:
        done |= engine.step()[1]
    for handle, request, most in ((first, long, 150), (second, short, 20)):
        (alone,) = policy.engine().generate([request], Sampling(max_new_tokens=most))
        assert [c.ids for c in done[handle]] == [c.ids for c in alone]
