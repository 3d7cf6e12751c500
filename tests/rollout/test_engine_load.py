"""Weights go in by copy, whole, and only between requests; memory stays within what was given."""

from __future__ import annotations

import copy
import random
import weakref

import pytest
import torch

from posttrain.rollout.engine import Engine
from posttrain.rollout.sampler import Request, Sampling
from posttrain.train.seeds import seed_of

SAMPLED = Sampling(max_new_tokens=12)
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
"""Keys and values of one position in the tiny models, float32."""


def certain(policy, token: int) -> dict[str, torch.Tensor]:
    """Weights after which `token` follows everything: its head row is all that is left, and reads a constant."""
    weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    head = "model.embed_tokens.weight" if policy.model.config.tie_word_embeddings else "lm_head.weight"
    # with every block's output silenced, each token's final state is its own normalised embedding
    for name in weights:
        if "o_proj" in name or "down_proj" in name:
            weights[name].zero_()
    weights["model.embed_tokens.weight"][:] = 1.0
    weights["model.norm.weight"][:] = 1.0
    if head == "lm_head.weight":
        weights[head].zero_()
        weights[head][token] = 10.0
    else:
        weights[head][token] = 10.0  # its state is normalised, so it reads as any other
        weights["lm_head.weight"] = weights[head]
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_weights_are_used_at_once(policy, requests, dtype):
    """Make token k certain, load, sample: k, also for a prompt that was just run. Closes T40."""
    engine = policy.engine(dtype=dtype)
    engine.generate(requests[:4], SAMPLED)
    for version, token in enumerate((77, 210), start=1):
        engine.load(certain(policy, token), version=version)
        for group in engine.generate(requests[:4], SAMPLED):
            for completion in group:
                assert set(completion.ids) == {token}
                assert completion.weights_version == version


def test_weights_are_copied(policy, requests):
    """The learner updates its parameters in place; the engine must not see it before the next load. Closes T40."""
    model = copy.deepcopy(policy.model)
    engine = policy.engine()
    engine.load(dict(model.named_parameters()), version=3)
    before = engine.generate(requests[:4], SAMPLED)
    for name, parameter in model.named_parameters():
        changed = parameter.data_ptr(), parameter.clone()
        parameter.mul_(-1.5).add_(0.3)
        assert parameter.data_ptr() == changed[0]
        after = engine.generate(requests[:4], SAMPLED)
        assert after == before, name
    engine.load(dict(model.named_parameters()), version=4)
    found = engine.generate(requests[:4], SAMPLED)
    assert [c.ids for g in found for c in g] != [c.ids for g in before for c in g]
    assert {c.weights_version for g in found for c in g} == {4}


def test_every_weight_matters(policy, requests):
    """Each parameter in turn is changed and loaded: the log-probabilities change with it. Closes T40."""
    engine = policy.engine()
    greedy = Sampling(temperature=0.0, max_new_tokens=3)
    original = dict(policy.model.named_parameters())
    (before,) = engine.generate([Request(requests[2].prompt_ids, (1,))], greedy)
    for name, parameter in original.items():
        engine.load(original | {name: parameter * 1.5}, version=1)
        (after,) = engine.generate([Request(requests[2].prompt_ids, (1,))], greedy)
        assert after[0].logprobs != before[0].logprobs, name


def test_parameters_alone_are_enough_when_the_head_is_tied(policy, requests):
    """A learner gives no lm_head when it is the embedding; a state dict names it twice. Closes T56."""
    engine = policy.engine()
    expected = engine.generate(requests[:2], SAMPLED)
    engine.load(dict(policy.model.named_parameters()), version=0)
    assert engine.generate(requests[:2], SAMPLED) == expected


def test_weights_may_come_in_another_dtype(policy, requests):
    wide = {name: parameter.double() for name, parameter in policy.model.named_parameters()}
    engine = policy.engine()
    expected = engine.generate(requests[:2], SAMPLED)
    engine.load(wide, version=0)
    assert engine.generate(requests[:2], SAMPLED) == expected


def test_weights_cannot_change_while_requests_run(policy, requests):
    """Half of a completion's cached keys would belong to other weights."""
    engine = policy.engine()
    weights = policy.model.state_dict()
    handle = engine.submit(requests[0], SAMPLED)
    with pytest.raises(RuntimeError, match="running"):
        engine.load(weights, version=1)
    engine.step()
    with pytest.raises(RuntimeError, match="running"):
        engine.load(weights, version=1)
    assert engine.version == 0
    engine.cancel(handle)
    engine.load(weights, version=1)
    assert engine.version == 1


def test_weights_can_be_given_back(policy, requests):
    """What a learner has room for while nothing is sampled; loaded again, all is as it was."""
    engine = policy.engine()
    weights = policy.model.state_dict()
    expected = engine.generate(requests[:2], SAMPLED)
    held = weakref.ref(engine._weights.embedding)
    engine.unload()
    assert held() is None
    handle = engine.submit(requests[0], SAMPLED)
    with pytest.raises(RuntimeError, match="load weights"):
        engine.step()
    with pytest.raises(RuntimeError, match="running"):
        engine.unload()
    engine.cancel(handle)
    engine.load(weights, version=0)
    assert engine.generate(requests[:2], SAMPLED) == expected


def test_an_engine_without_weights_says_so(policy, requests):
    engine = Engine(policy.model.config, stop_ids=(2,), decode=policy.renderer.decode)
    with pytest.raises(RuntimeError, match="load weights"):
        engine.generate(requests[:1], SAMPLED)


# -- continuous batching and memory ---------------------------------------------------------------


def test_sixty_requests_through_five_rows(policy):
    """All complete, in order, never more than five at a time, and rows are refilled as they come free."""
    rng = random.Random(3)
    wanted = [
        Request(tuple(rng.randrange(5, 300) for _ in range(rng.randrange(1, 30))), (seed_of("sixty", i),))
        for i in range(60)
    ]
    limits = [Sampling(max_new_tokens=rng.randrange(1, 20)) for _ in wanted]
    engine = policy.engine(max_rows=5)
    handles = [engine.submit(request, limit) for request, limit in zip(wanted, limits, strict=True)]
    done, steps = {}, 0
    while engine.busy:
        tokens, finished = engine.step()
        assert len({(token.handle, token.sample) for token in tokens}) <= 5
        done.update(finished)
        steps += 1
    assert sorted(done) == handles
    lengths = [len(done[handle][0].ids) for handle in handles]
    assert all(n <= limit.max_new_tokens for n, limit in zip(lengths, limits, strict=True))
    assert steps < sum(lengths) / 5 + 2 * max(lengths)  # a batch that waits for its slowest would take longer
    expected = policy.engine().generate([wanted[40]], limits[40])[0]
    assert done[handles[40]][0].ids == expected[0].ids


def test_as_many_samples_run_as_the_cache_has_room_for(policy):
    """600 positions and samples of up to 92: six at a time, and never fewer while others wait."""
    engine = policy.engine(cache_gib=600 * TOKEN_BYTES / 2**30)
    for i in range(4):
        seeds = tuple(seed_of(i, sample) for sample in range(5))
        engine.submit(Request((5 + i,) * 52, seeds), Sampling(max_new_tokens=40))
    at_once, done = [], {}
    while engine.busy:
        tokens, finished = engine.step()
        at_once.append(len({(token.handle, token.sample) for token in tokens}))
        done.update(finished)
    assert max(at_once) == at_once[0] == 6
    assert [len(completions) for completions in done.values()] == [5] * 4


def peak_bytes(engine: Engine) -> int:
    peak = 0
    while engine.busy:
        engine.step()
        peak = max(peak, engine.cache_bytes)
    return peak


@pytest.mark.parametrize("prompt_tokens", [32, 60])
def test_cache_stays_within_its_bound(policy, prompt_tokens):
    """Room for 600 positions: like requests wait their turn rather than take more, and none is lost."""
    budget = 600 * TOKEN_BYTES
    engine = policy.engine(cache_gib=budget / 2**30)
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        prompt = tuple(torch.randint(5, 300, (prompt_tokens,), generator=generator).tolist())
        engine.submit(Request(prompt, (seed_of(i, 0), seed_of(i, 1))), Sampling(max_new_tokens=40))
    assert 0 < peak_bytes(engine) <= budget
    assert engine.cache_bytes == 0


def test_cache_stays_within_its_bound_when_lengths_differ(policy):
    """Many short samples, then long ones while the last short ones run: as evaluations have them."""
    budget = 2000 * TOKEN_BYTES
    engine = policy.engine(cache_gib=budget / 2**30)
    for i in range(60):
        engine.submit(Request((5 + i, 6, 7), (seed_of(i),)), Sampling(max_new_tokens=2 + i % 9))
    for i in range(4):
        engine.submit(Request((5 + i,) * 200, (seed_of(i),)), Sampling(max_new_tokens=90))
    assert peak_bytes(engine) <= budget


def test_a_bounded_cache_changes_no_tokens(policy, requests, alone):
    engine = policy.engine(cache_gib=300 * TOKEN_BYTES / 2**30)
    found = engine.generate(requests, Sampling(max_new_tokens=24))
    assert [[c.ids for c in group] for group in found] == [[c.ids for c in group] for group in alone]
