"""The engine answers as Hugging Face does, and as it does alone, whoever shares the batch."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from scipy import stats

from posttrain.data.pack import collate
from posttrain.errors import RecipeError
from posttrain.records import Message, Problem, Rollout, Score
from posttrain.rollout.engine.draw import noise, uniforms
from posttrain.rollout.sampler import Request, Sampling
from posttrain.runtime.local import LocalLearner
from posttrain.train.credit import completion_row
from posttrain.train.seeds import seed_of

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
SAMPLED = Sampling(max_new_tokens=24)


def tokens_of(groups):
    return [[completion.ids for completion in group] for group in groups]


def as_rollout(request, completion) -> Rollout:
    problem = Problem("p", (Message("user", "?"),), None, "string")
    return Rollout(problem, request.prompt_ids, completion, Score(1.0, "correct"), 1.0)


# -- against Hugging Face -------------------------------------------------------------------------


def test_greedy_equals_hugging_face(policy, requests):
    """Unequal prompts in one batch, each alone here, each alone there, and left-padded there. Closes T44."""
    prompts = [request.prompt_ids for request in requests[:8]]
    wanted = [Request(prompt, (1,)) for prompt in prompts]
    expected = [policy.greedy([prompt], GREEDY.max_new_tokens)[0] for prompt in prompts]
    assert policy.greedy(prompts, GREEDY.max_new_tokens) == expected
    together = [group[0].ids for group in policy.engine().generate(wanted, GREEDY)]
    alone = [policy.engine().generate([request], GREEDY)[0][0].ids for request in wanted]
    assert together == expected
    assert alone == expected


def test_greedy_log_probabilities_are_those_at_temperature_one(policy, requests):
    (completion,) = policy.engine().generate([Request(requests[1].prompt_ids, (3,))], GREEDY)[0]
    ids = requests[1].prompt_ids + completion.ids
    exact = policy.logprobs(ids)[len(requests[1].prompt_ids) - 1 : -1]
    expected = exact[torch.arange(len(completion.ids)), list(completion.ids)]
    torch.testing.assert_close(torch.tensor(completion.logprobs).double(), expected, rtol=0, atol=1e-4)


def test_first_tokens_of_two_thousand_seeds_follow_the_softmax(policy):
    prompt = (17, 40, 99, 250)
    request = Request(prompt, tuple(seed_of("first", i) for i in range(2000)))
    groups = policy.engine().generate([request], Sampling(max_new_tokens=1))
    counts = np.bincount([completion.ids[0] for completion in groups[0]], minlength=320)
    expected = policy.logprobs(prompt)[-1].exp().numpy() * 2000
    rare = expected < 5
    found = np.append(counts[~rare], counts[rare].sum())
    assert stats.chisquare(found, np.append(expected[~rare], expected[rare].sum())).pvalue > 1e-3


# -- against the learner --------------------------------------------------------------------------


def learner_differences(policy, requests, dtype, temperature) -> torch.Tensor:
    """|recorded - learner's| log-probabilities of everything sampled."""
    sampling = Sampling(temperature=temperature, max_new_tokens=24)
    groups = policy.engine(dtype=dtype).generate(requests, sampling)
    rollouts = [as_rollout(r, c) for r, group in zip(requests, groups, strict=True) for c in group]
    learner = LocalLearner(copy.deepcopy(policy.model), compute_dtype=dtype, temperature=temperature)
    batch = collate([completion_row(rollout, str(i)) for i, rollout in enumerate(rollouts)])
    recorded = torch.tensor([value for rollout in rollouts for value in rollout.completion.logprobs])
    assert batch.num_targets == len(recorded)
    return (learner.logprobs(batch)[batch.mask] - recorded).abs()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_recorded_log_probabilities_are_the_learners(policy, requests, temperature):
    """Same ids, same positions, same temperature: the ratio before an update is 1. Closes T33, T38."""
    assert learner_differences(policy, requests, torch.float32, temperature).max() < 1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_recorded_log_probabilities_are_nearly_the_learners_in_bfloat16(policy, requests, temperature):
    """Both round to bfloat16 at the same places. Closes T38."""
    assert learner_differences(policy, requests, torch.bfloat16, temperature).mean() < 1e-2


def test_trained_ids_are_the_sampled_ids(policy, requests):
    """No text in between: prompt and completion reach the batch as they were drawn. Closes T41, T42."""
    request = requests[3]
    groups = policy.engine().generate([request], SAMPLED)
    rows = [completion_row(as_rollout(request, completion), "r") for completion in groups[0]]
    batch = collate(rows)
    for row, completion in zip(batch.ids.split(batch.lengths), groups[0], strict=True):
        assert tuple(row.tolist()) == request.prompt_ids + completion.ids
    for mask, completion in zip(batch.mask.split(batch.lengths), groups[0], strict=True):
        assert mask.tolist() == [False] * len(request.prompt_ids) + [True] * len(completion.ids)
        assert len(completion.logprobs) == len(completion.ids)


# -- whoever shares the batch ---------------------------------------------------------------------


@pytest.mark.parametrize("max_rows", [256, 17, 5])
def test_a_crowd_changes_nothing(policy, requests, alone, max_rows):
    """Samples end and are moved, prompts join late, groups are split: each gives what it gives alone."""
    found = policy.engine(max_rows=max_rows).generate(requests, SAMPLED)
    assert tokens_of(found) == tokens_of(alone)
    assert {c.stop_reason for group in found for c in group} == {"stop", "length"}
    for group, own in zip(found, alone, strict=True):
        for completion, single in zip(group, own, strict=True):
            assert completion.text == single.text
            assert completion.stop_reason == single.stop_reason
            np.testing.assert_allclose(completion.logprobs, single.logprobs, rtol=0, atol=1e-4)


def test_the_order_of_submission_changes_nothing(policy, requests, alone):
    order = list(range(len(requests)))
    random.Random(5).shuffle(order)
    found = policy.engine(max_rows=11).generate([requests[i] for i in order], SAMPLED)
    assert tokens_of(found) == [tokens_of(alone)[i] for i in order]


def test_a_group_equals_single_requests(policy):
    """One prompt run once for seven samples; two of them share a seed and so their tokens."""
    prompt = tuple(range(30, 70))
    seeds = (*(seed_of("group", i) for i in range(6)), seed_of("group", 2))
    group = policy.engine().generate([Request(prompt, seeds)], SAMPLED)[0]
    singles = policy.engine().generate([Request(prompt, (seed,)) for seed in seeds], SAMPLED)
    assert [c.ids for c in group] == [single[0].ids for single in singles]
    assert group[2].ids == group[6].ids
    assert len({c.ids for c in group}) == 6


def test_the_same_seed_gives_other_prompts_other_tokens_and_repeats_itself(policy, requests):
    engine = policy.engine()
    once, again = (engine.generate(requests[:4], SAMPLED) for _ in range(2))
    assert tokens_of(once) == tokens_of(again)
    assert len({c.ids for group in once for c in group}) > 4


@pytest.mark.parametrize("seed", [0, 2**62, 2**63 - 1])
def test_seeds_of_63_bits(policy, seed):
    """The first token is the first to arrive by the stream's first noise."""
    prompt = (44, 45, 46)
    (completion,) = policy.engine().generate([Request(prompt, (seed,))], Sampling(max_new_tokens=1))[0]
    likely = policy.logprobs(prompt)[-1].exp()
    bits = torch.from_numpy(noise(np.array([seed], np.uint64), np.zeros(1, np.uint64)))
    times = -torch.log1p(-uniforms(bits, len(likely))[0]) / likely
    assert completion.ids[0] == int(times.argmin())


def test_different_settings_in_one_batch(policy, requests):
    """Each request keeps its own temperature, truncation and limit."""
    settings = [
        GREEDY,
        Sampling(temperature=0.5, max_new_tokens=9),
        Sampling(top_k=3, max_new_tokens=30),
        Sampling(top_p=0.4, temperature=1.5, max_new_tokens=5),
        Sampling(max_new_tokens=1),
    ]
    pairs = [(request, settings[i % 5]) for i, request in enumerate(requests[:15])]
    expected = [policy.engine().generate([request], sampling)[0] for request, sampling in pairs]
    engine = policy.engine(max_rows=9)
    handles = [engine.submit(request, sampling) for request, sampling in pairs]
    done = {}
    while engine.busy:
        done.update(engine.step()[1])
    assert tokens_of([done[handle] for handle in handles]) == tokens_of(expected)


@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=0.7, temperature=1.5), Sampling(top_k=4), Sampling(top_p=0.3)]
)
def test_truncated_sampling_records_the_renormalised_log_probabilities(policy, requests, sampling):
    """Every token lies in the truncated set of the exact distribution before it. Closes T39."""
    request = requests[4]
    for completion in policy.engine().generate([request], sampling)[0]:
        ids = request.prompt_ids + completion.ids
        exact = policy.logprobs(ids, sampling.temperature)[len(request.prompt_ids) - 1 : -1].exp()
        for probabilities, token, logprob in zip(exact, completion.ids, completion.logprobs, strict=True):
            ordered, order = probabilities.sort(descending=True)
            size = sampling.top_k or int((ordered.cumsum(0) < sampling.top_p).sum()) + 1
            assert token in order[:size].tolist()
            expected = probabilities[token] / ordered[:size].sum()
            assert logprob == pytest.approx(expected.log().item(), abs=2e-4)


# -- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_new_tokens", "reason", "num_ids"),
    [(10, "stop", 5), (5, "stop", 5), (4, "length", 4), (1, "length", 1)],
)
def test_stop_id_or_limit(chain, max_new_tokens, reason, num_ids):
    """Finished, finished exactly at the limit, truncated; the stop id is kept in `ids`. Closes T42."""
    script = list(range(100, 120))
    engine = chain(script, stop_ids=(script[5], 7))
    sampling = Sampling(max_new_tokens=max_new_tokens)
    (completion,) = engine.generate([Request((script[0],), (1,))], sampling)[0]
    assert completion.ids == tuple(script[1 : 1 + num_ids])
    assert completion.stop_reason == reason
    assert completion.logprobs == pytest.approx([0.0] * num_ids, abs=1e-5)


def test_special_tokens_are_in_the_ids_and_not_in_the_text(chain, id_of):
    script = [id_of(token) for token in ("a", "b", "c", "<|im_end|>")]
    (completion,) = chain(script).generate([Request((script[0],), (1,))], SAMPLED)[0]
    assert completion.ids == tuple(script[1:])
    assert (completion.text, completion.stop_reason) == ("bc", "stop")


@pytest.mark.parametrize(
    ("stop", "text", "num_ids"),
    [
        (("de",), "bc", 4),
        (("e",), "bcd", 4),
        (("zz", "cdef"), "b", 5),
        (("ghi", "gh"), "bcdef", 7),
        (("ef", "cdef", "f"), "b", 5),
        (("b",), "", 1),
        (("zz",), "bcdefghijk", 10),
    ],
)
def test_stop_texts_are_cut_from_the_text_and_kept_in_the_ids(chain, id_of, stop, text, num_ids):
    """What was sampled is what is trained on, the stop text included. Closes T41, T42."""
    script = [id_of(letter) for letter in "abcdefghijklmnop"]
    sampling = Sampling(max_new_tokens=10, stop=stop)
    (completion,) = chain(script).generate([Request((script[0],), (1,))], sampling)[0]
    assert completion.text == text
    assert completion.ids == tuple(script[1 : 1 + num_ids])
    assert len(completion.logprobs) == num_ids
    assert completion.stop_reason == ("length" if stop == ("zz",) else "stop")


def test_stop_texts_of_several_tokens_a_character(chain):
    """Bytes of CJK and emoji are often tokens of their own: here two tokens make one é."""
    script = list(range(100, 160))
    engine = chain(script, decode=lambda ids: "é" * (len(ids) // 2))
    sampling = Sampling(max_new_tokens=58, stop=("é" * 20,))
    (completion,) = engine.generate([Request((script[0],), (1,))], sampling)[0]
    assert (completion.stop_reason, len(completion.ids)) == ("stop", 40)


# -- streaming and cancelling ---------------------------------------------------------------------


def test_streaming_gives_the_same_tokens(policy, requests):
    request = requests[3]
    expected = policy.engine().generate([request], SAMPLED)[0]
    engine = policy.engine()
    tokens = list(engine.stream(request, SAMPLED))
    for sample, completion in enumerate(expected):
        own = [token for token in tokens if token.sample == sample]
        assert tuple(token.id for token in own) == completion.ids
        assert [token.completion for token in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].completion.ids == completion.ids
        assert own[-1].completion.stop_reason == completion.stop_reason
    assert not engine.busy


def test_leaving_a_stream_ends_its_request(policy, requests):
    engine = policy.engine()
    stream = engine.stream(requests[0], SAMPLED)
    next(stream)
    assert engine.busy
    stream.close()
    assert not engine.busy
    engine.load(policy.model.state_dict(), version=1)
    assert tokens_of(engine.generate(requests[:3], SAMPLED)) == tokens_of(
        policy.engine().generate(requests[:3], SAMPLED)
    )


@pytest.mark.parametrize("max_rows", [256, 4])
def test_cancelling_in_the_middle_leaves_the_others_alone(policy, requests, alone, max_rows):
    """Running, half admitted and waiting requests are cancelled; the rest give what they give alone."""
    engine = policy.engine(max_rows=max_rows)
    handles = [engine.submit(request, SAMPLED) for request in requests[:12]]
    done = {}
    for _ in range(5):
        done.update(engine.step()[1])
    cancelled = {i: engine.cancel(handles[i]) for i in (0, 3, 7, 11) if handles[i] not in done}
    assert {0, 7, 11} <= set(cancelled) | {i for i in range(12) if handles[i] in done}
    while engine.busy:
        done.update(engine.step()[1])
    for i, completions in cancelled.items():
        assert handles[i] not in done
        assert len(completions) == len(requests[i].seeds)
        for completion, own in zip(completions, alone[i], strict=True):
            assert completion.ids == own.ids[: len(completion.ids)]
            assert completion.stop_reason == "cancelled" or completion.ids == own.ids
            assert len(completion.logprobs) == len(completion.ids)
    assert any(c.stop_reason == "cancelled" for completions in cancelled.values() for c in completions)
    for i in set(range(12)) - set(cancelled):
        assert [c.ids for c in done[handles[i]]] == [c.ids for c in alone[i]], i


def test_cancelling_what_is_unknown_or_done(policy, requests):
    engine = policy.engine()
    assert engine.cancel(99) is None
    handle = engine.submit(requests[0], GREEDY)
    while engine.busy:
        engine.step()
    assert engine.cancel(handle) is None


# -- what is refused ------------------------------------------------------------------------------


def test_a_request_that_cannot_fit_is_refused(policy):
    engine = policy.engine()
    with pytest.raises(RecipeError, match="512"):
        engine.submit(Request(tuple(range(5, 105)) * 5, (1,)), Sampling(max_new_tokens=13))
    engine.submit(Request(tuple(range(5, 105)) * 5, (1,)), Sampling(max_new_tokens=12))
    small = policy.engine(
        cache_gib=100 * 256 / 2**30
    )  # 2 x 2 layers x 2 heads x 8 numbers of 4 bytes a token
    with pytest.raises(RecipeError, match="cache 100"):
        small.submit(Request((5,) * 90, (1,)), Sampling(max_new_tokens=11))


def test_an_empty_request_is_refused(policy):
    engine = policy.engine()
    for request, sampling in [
        (Request((), (1,)), GREEDY),
        (Request((5,), ()), GREEDY),
        (Request((5,), (1,)), Sampling(max_new_tokens=0)),
    ]:
        with pytest.raises(ValueError, match="needs a prompt"):
            engine.submit(request, sampling)
    assert not engine.busy


def test_a_refused_request_leaves_the_engine_as_it_was(policy, requests):
    engine = policy.engine()
    with pytest.raises(RecipeError):
        engine.generate([requests[0], Request((5,) * 600, (1,))], SAMPLED)
    assert not engine.busy
    engine.load(policy.model.state_dict(), version=1)


def test_nothing_to_do(policy):
    assert policy.engine().generate([], GREEDY) == []
