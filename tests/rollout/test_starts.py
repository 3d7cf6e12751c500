"""Samples that begin alike read that start in one place: less memory, more at once, the same tokens."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from posttrain.model.decoder import Shape
from posttrain.model.load import load_model, load_tokenizer
from posttrain.model.native import build
from posttrain.model.tiny import tiny_llama
from posttrain.rollout.engine import Engine
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.starts import Starts
from posttrain.rollout.sampler import Request, Sampling

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no kernels: {build.status()}")
HEADS = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4
"""Keys and values of a token: 2 layers, 2 key heads of 32, float32."""
SHARED = tuple(range(5, 205))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("m") / "model", max_position_embeddings=1024, **HEADS)
    return load_model(folder, dtype=torch.float32, device=torch.device("cpu")), load_tokenizer(folder)


def open_engine(model, *, tokens: int = 100_000, **settings) -> Engine:
    """An engine whose cache holds so many tokens."""
    given = {"stop_ids": (), "decode": model[1].decode, "dtype": torch.float32}
    engine = Engine(model[0].config, cache_gib=tokens * TOKEN_BYTES / 2**30, **given, **settings)
    engine.load(model[0].state_dict(), version=0)
    return engine


@pytest.fixture
def starts(model) -> Starts:
    return Starts(Cache(Shape.of(model[0].config), dtype=torch.float32, device=torch.device("cpu")))


def test_a_prompt_by_itself_is_its_samples_start(starts):
    """In whole blocks, and its last token never: 200 tokens are 6 times 32 and 8."""
    assert starts.of(Request(SHARED, (1,)), None).depth == 192
    assert starts.of(Request(SHARED[:192], (1,)), None).depth == 160
    assert starts.of(Request(SHARED[:193], (1,)), None).depth == 192
    assert starts.of(Request(SHARED[:32], (1,)), None).depth == 0


def test_prompts_that_begin_alike_have_one_start(starts):
    """The first sees that the next begins alike; later ones take what there is, which goes with the last of them."""
    first = starts.of(Request((*SHARED, 1, 2, 3), (1,)), (*SHARED, 4))
    second = starts.of(Request((*SHARED, 4), (1,)), (9, 9, 9))
    other = starts.of(Request(SHARED[::-1], (1,)), (9, 9))
    third = starts.of(Request((*SHARED, 7, 8), (1,)), None)
    assert first is second is third and first.depth == 192
    assert other is not first and np.array_equal(other.ids, SHARED[:7:-1])
    assert np.array_equal(first.ids, SHARED[:192])
    del first, second, third
    gc.collect()
    assert starts.of(Request((*SHARED, *SHARED), (1,)), None).depth == 384


@pytest.mark.parametrize(("samples", "is_own"), [(1, False), (16, True)])
def test_a_group_takes_the_whole_prompt_rather_than_a_bit_that_others_have(starts, samples, is_own):
    """Of 300 tokens the first 200 are shared; 16 samples would each read the other 100 for themselves."""
    prompt = (*SHARED, *range(100))
    found = starts.of(Request(prompt, tuple(range(samples))), (*SHARED, 1))
    assert found.depth == (288 if is_own else 192)


def test_a_cache_that_stays_has_none(model):
    cache = Cache(Shape.of(model[0].config), dtype=torch.float32, device=torch.device("cpu"), plain=True)
    assert Starts(cache).of(Request(SHARED, (1,)), SHARED).depth == 0


REQUESTS = [
    Request(SHARED, tuple(range(10))),
    Request((*SHARED, 7, 8), (20,)),
    Request((*SHARED, *range(70)), (30, 31)),
    Request((3, 4, 5), (40,)),
    Request(SHARED[::-1], (50,)),
]


def test_tokens_are_those_of_each_sample_alone(model):
    """With starts of all kinds at once, and each sample in an engine that keeps everything in slots."""
    sampling = Sampling(max_new_tokens=40)
    together = open_engine(model).generate(REQUESTS, sampling)
    for request, group in zip(REQUESTS, together, strict=True):
        for seed, found in zip(request.seeds, group, strict=True):
            ((alone,),) = open_engine(model, steady=True).generate(
                [Request(request.prompt_ids, (seed,))], sampling
            )
            assert found.ids == alone.ids
            np.testing.assert_allclose(found.logprobs, alone.logprobs, rtol=0, atol=1e-5)


def test_a_group_takes_little_more_room_than_one(model):
    """512 tokens hold a prompt of 200 and ten samples of its last 8 and 20 new ones: not ten times 220."""
    engine = open_engine(model, tokens=512)
    handle = engine.submit(REQUESTS[0], Sampling(max_new_tokens=20))
    most = running = 0
    done = {}
    while engine.busy:
        tokens, finished = engine.step()
        done |= finished
        running = max(running, len({token.sample for token in tokens}))
        most = max(most, engine.cache_bytes)
    assert running == 10 and len(done[handle]) == 10
    assert (192 + 10 * 28) * TOKEN_BYTES <= most <= 512 * TOKEN_BYTES
    assert engine.cache_bytes == 0


def test_what_does_not_fit_waits(model):
    """Each has a start of its own: the bound counts starts and slots, and all are served in the end."""
    engine = open_engine(model, tokens=600)
    prompts = [tuple(range(i, i + 150)) for i in range(0, 70, 10)]
    handles = [engine.submit(Request(p, (1, 2)), Sampling(max_new_tokens=30)) for p in prompts]
    done = {}
    while engine.busy:
        done |= engine.step()[1]
        assert engine.cache_bytes <= 600 * TOKEN_BYTES
    assert set(done) == set(handles)
    for prompt, handle in zip(prompts, handles, strict=True):
        expected = open_engine(model).generate([Request(prompt, (1, 2))], Sampling(max_new_tokens=30))[0]
        assert [c.ids for c in done[handle]] == [c.ids for c in expected]
