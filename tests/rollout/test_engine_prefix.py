"""What prompts have in common is run once: the same answers, fewer tokens run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posttrain.rollout.engine import forward
from posttrain.rollout.sampler import Request, Sampling

SAMPLED = Sampling(max_new_tokens=12)
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


@pytest.fixture
def few_shot() -> list[Request]:
    """Nine prompts that begin with the same 40 tokens, some of them alike for longer."""
    stream = np.random.default_rng(2)
    start = stream.integers(5, 300, 40).tolist()
    longer = start + stream.integers(5, 300, 20).tolist()
    tails = [stream.integers(5, 300, 3 + i).tolist() for i in range(9)]
    return [
        Request(tuple((longer if i % 3 == 0 else start) + tail), (100 + i, 200 + i))
        for i, tail in enumerate(tails)
    ]


@pytest.fixture
def run_tokens(monkeypatch) -> list[int]:
    """Tokens that go through the layers in each prefill."""
    counts: list[int] = []
    embed = forward.F.embedding

    def counted(ids, weight):
        counts.append(len(ids))
        return embed(ids, weight)

    monkeypatch.setattr(forward.F, "embedding", counted)
    return counts


def answers(engine, requests, sampling):
    """Through `submit` and `step`, as the server and the evaluation ask; `generate` begins afresh."""
    handles = [engine.submit(request, sampling) for request in requests]
    done = {}
    while engine.busy:
        done.update(engine.step()[1])
    return [[(c.ids, c.logprobs, c.text) for c in done[handle]] for handle in handles]


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY])
def test_prompts_answer_as_they_do_alone(policy, few_shot, sampling):
    """In one prefill, one after another in one engine, and each in an engine of its own, in float32."""
    together = answers(policy.engine(), few_shot, sampling)
    engine = policy.engine()
    in_turn = [answers(engine, [request], sampling)[0] for request in few_shot]
    alone = [answers(policy.engine(), [request], sampling)[0] for request in few_shot]
    for found in (together, in_turn):
        for group, other in zip(found, alone, strict=True):
            assert [ids for ids, _, _ in group] == [ids for ids, _, _ in other]
            for (_, a, _), (_, b, _) in zip(group, other, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_the_common_start_is_run_once(policy, few_shot, run_tokens):
    """40 + 20 shared tokens and the tails of 3 to 11, in the first pass of nine prompts."""
    policy.engine().generate(few_shot, Sampling(max_new_tokens=1))
    assert run_tokens[0] == 40 + 20 + sum(range(3, 12))


def test_the_start_of_the_prompt_before_is_not_run_again(policy, few_shot, run_tokens):
    engine = policy.engine()
    for request in few_shot[1:3]:
        answers(engine, [request], Sampling(max_new_tokens=1))
    assert run_tokens == [44, 5]


def test_a_prompt_said_again_runs_its_last_token(policy, few_shot, run_tokens):
    engine = policy.engine()
    first, second = (answers(engine, few_shot[:1], SAMPLED) for _ in range(2))
    assert run_tokens[0] == 63
    assert 1 in run_tokens[1:]
    assert [[ids for ids, _, _ in group] for group in first] == [
        [ids for ids, _, _ in group] for group in second
    ]


def test_new_weights_forget_what_was_run(policy, few_shot):
    """A prompt's keys belong to the weights that made them."""
    engine = policy.engine()
    answers(engine, few_shot[:1], SAMPLED)
    changed = {
        name: weight + 0.05 * torch.randn_like(weight) for name, weight in policy.model.state_dict().items()
    }
    engine.load(changed, version=1)
    fresh = policy.engine()
    fresh.load(changed, version=1)
    assert answers(engine, few_shot[:1], GREEDY) == answers(fresh, few_shot[:1], GREEDY)


def test_generate_does_not_depend_on_what_came_before(policy, few_shot, run_tokens):
    """To the bit: a resumed run samples what the run that was stopped would have sampled."""
    used, fresh = policy.engine(), policy.engine()
    used.generate(few_shot[:3], SAMPLED)
    run_tokens.clear()
    found = used.generate(few_shot[3:6], SAMPLED)
    in_used = list(run_tokens)
    run_tokens.clear()
    assert found == fresh.generate(few_shot[3:6], SAMPLED)
    assert in_used == run_tokens
