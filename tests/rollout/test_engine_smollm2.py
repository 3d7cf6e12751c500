"""The engine on a real model of 135M parameters."""

from __future__ import annotations

import copy

import pytest
import torch

from posttrain.data.pack import collate
from posttrain.data.render import Renderer
from posttrain.model.load import load_model, load_tokenizer
from posttrain.records import Message, Row
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampler import Request, Sampling
from posttrain.runtime.local import LocalLearner
from posttrain.train.seeds import seed_of

CPU = torch.device("cpu")
QUESTIONS = [
    "Name three fruits.",
    "What is 17 plus 25? Think about the tens first, then about the ones, and give the sum at the end.",
    "Hi",
    "Write one sentence about the sea in capitals.",
]


@pytest.fixture(scope="module")
def renderer(smollm2_dir) -> Renderer:
    return Renderer(load_tokenizer(smollm2_dir))


@pytest.fixture(scope="module")
def model(smollm2_dir):
    return load_model(smollm2_dir, dtype=torch.float32, device=CPU)


def engine_of(model, renderer, **options) -> Engine:
    engine = Engine(model.config, stop_ids=renderer.stop_ids, decode=renderer.decode, **options)
    engine.load(model.state_dict(), version=0)
    return engine


@torch.no_grad()
def test_greedy_batch_equals_each_alone_and_hugging_face(model, renderer):
    """Unequal prompts, float32. Closes T44."""
    requests = [Request(renderer.prompt([Message("user", q)]), (0,)) for q in QUESTIONS]
    sampling = Sampling(temperature=0.0, max_new_tokens=32)
    engine = engine_of(model, renderer)
    together = [group[0].ids for group in engine.generate(requests, sampling)]
    assert together == [engine.generate([request], sampling)[0][0].ids for request in requests]
    for request, found in zip(requests, together, strict=True):
        ids = torch.tensor([request.prompt_ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=32,
            eos_token_id=list(renderer.stop_ids),
            pad_token_id=renderer.stop_ids[0],
        )
        assert found == tuple(out[0, len(request.prompt_ids) :].tolist())


@pytest.mark.parametrize(
    ("dtype", "mean", "largest"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-2, 0.5)]
)
def test_recorded_log_probabilities_are_the_learners(model, renderer, dtype, mean, largest, steady_products):
    """Closes T33, T38. Where products depend on their number of rows, bfloat16 leaves its own rounding: 0.03 nats."""
    if dtype == torch.bfloat16 and not steady_products:
        mean = 5e-2
    requests = [
        Request(renderer.prompt([Message("user", q)]), tuple(seed_of(q, i) for i in range(4)))
        for q in QUESTIONS
    ]
    groups = engine_of(model, renderer, dtype=dtype).generate(requests, Sampling(max_new_tokens=32))
    pairs = [(r.prompt_ids, c) for r, group in zip(requests, groups, strict=True) for c in group]
    rows = [Row("", p + c.ids, (False,) * len(p) + (True,) * len(c.ids)) for p, c in pairs]
    batch = collate(rows)
    learner = LocalLearner(copy.deepcopy(model), compute_dtype=dtype)
    recorded = torch.tensor([value for _, completion in pairs for value in completion.logprobs])
    difference = (learner.logprobs(batch)[batch.mask] - recorded).abs()
    assert difference.mean() < mean
    assert difference.max() < largest
