"""From problems to groups: order, number and rewards survive whatever a verifier does."""

from __future__ import annotations

import pytest

from posttrain.algo.advantage import group_centred
from posttrain.data.render import Renderer
from posttrain.errors import RecipeError
from posttrain.model.load import load_tokenizer
from posttrain.records import Completion, Message, Problem, Score
from posttrain.rewards.verifier import VERIFIERS, Verifier
from posttrain.rollout.collect import Reward, collect
from posttrain.rollout.sampler import Sampling
from posttrain.train.credit import rewards_of
from posttrain.train.seeds import seed_of

SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def renderer(tiny_llama_dir) -> Renderer:
    return Renderer(load_tokenizer(tiny_llama_dir))


class Echo:
    """Answers each prompt with its own ids' sum and the seed, so that every completion can be told apart."""

    def __init__(self, stop_reason="stop") -> None:
        self.stop_reason = stop_reason
        self.requests = []

    def generate(self, requests, sampling):
        assert sampling == SAMPLING
        self.requests += requests
        return [
            [
                Completion(
                    (seed % 300, 2), (-0.5, -0.1), self.stop_reason, f"{sum(request.prompt_ids)}:{seed}", 4
                )
                for seed in request.seeds
            ]
            for request in requests
        ]

    def load(self, weights, *, version):
        raise AssertionError("collect loads nothing")

    def unload(self):
        raise AssertionError("collect unloads nothing")


@pytest.fixture
def register(monkeypatch):
    def add(name, check):
        monkeypatch.setitem(VERIFIERS, name, Verifier(name, check, (), ()))

    return add


def problems_of(num: int, verifier: str) -> list[Problem]:
    return [Problem(f"p{i}", (Message("user", f"Question {i}?"),), i, verifier) for i in range(num)]


def run(sampler, renderer, problems, *, samples=3, reward=Reward()):  # noqa: B008
    return collect(
        sampler,
        renderer,
        problems,
        samples_per_problem=samples,
        sampling=SAMPLING,
        reward=reward,
        seed=lambda place, sample: seed_of("collect", place, sample),
    )


def test_groups_belong_to_their_problems(renderer, register):
    """Reward = the problem's own number, so a row in the wrong group would give advantages. Closes T35."""
    register("number", lambda completion, truth: Score(truth / 10, "correct"))
    groups = run(Echo(), renderer, problems_of(7, "number"), reward=Reward(scale=10))
    assert [group.problem.id for group in groups] == [f"p{i}" for i in range(7)]
    for number, group in enumerate(groups):
        prompt = renderer.prompt(group.problem.messages)
        for sample, rollout in enumerate(group.rollouts):
            assert rollout.problem is group.problem
            assert rollout.prompt_ids == prompt
            assert rollout.completion.text == f"{sum(prompt)}:{seed_of('collect', number, sample)}"
            assert rollout.reward == pytest.approx(number)
    assert not group_centred(rewards_of(groups)).any()


def test_every_third_check_raises(renderer, register):
    """The failed ones score 0 with verdict error; the others keep their places. Closes T45."""
    calls = []

    def check(completion, truth):
        calls.append(completion)
        if len(calls) % 3 == 0:
            raise RuntimeError("the checker is broken")
        return Score(1.0, "correct", completion)

    register("fragile", check)
    groups = run(Echo(), renderer, problems_of(5, "fragile"), samples=4)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert [len(group.rollouts) for group in groups] == [4] * 5
    assert calls == [rollout.completion.text for rollout in rollouts]
    for place, rollout in enumerate(rollouts, start=1):
        if place % 3:
            assert (rollout.score.reason, rollout.reward) == (rollout.completion.text, 1.0)
        else:
            assert (rollout.score.verdict, rollout.reward) == ("error", 0.0)
            assert "the checker is broken" in rollout.score.reason


def test_problems_may_have_different_verifiers(renderer, register):
    register("yes", lambda completion, truth: Score(1.0, "correct"))
    register("no", lambda completion, truth: Score(0.0, "wrong"))
    problems = [Problem(str(i), (Message("user", "?"),), None, "yes" if i % 2 else "no") for i in range(6)]
    groups = run(Echo(), renderer, problems, samples=2)
    assert rewards_of(groups).tolist() == [[0.0, 0.0], [1.0, 1.0]] * 3


def test_an_unknown_verifier_is_refused(renderer):
    """Closes T52."""
    with pytest.raises(RecipeError, match="no verifier"):
        run(Echo(), renderer, problems_of(1, "no-such-verifier"))


@pytest.mark.parametrize(
    ("stop_reason", "no_stop_score", "value", "reward"),
    [
        ("stop", -1.0, 0.5, 5.0),
        ("length", -1.0, 0.5, -1.0),
        ("cancelled", -1.0, 0.5, -1.0),
        ("length", 0.0, 1.0, 0.0),
        ("length", None, 0.5, 5.0),
        ("stop", None, 0.0, 0.0),
    ],
)
def test_a_reply_cut_short_has_its_reward_replaced(stop_reason, no_stop_score, value, reward):
    """Replaced, not added to, and not scaled; a score of 0 is one too. Closes T42."""
    given = Reward(scale=10.0, no_stop_score=no_stop_score)
    completion = Completion((1,), (-1.0,), stop_reason, "")
    assert given(completion, Score(value, "correct")) == reward


def test_seeds_reach_the_sampler_by_place_and_sample(renderer, register):
    register("yes", lambda completion, truth: Score(1.0, "correct"))
    sampler = Echo()
    run(sampler, renderer, problems_of(3, "yes"), samples=2)
    assert [request.seeds for request in sampler.requests] == [
        (seed_of("collect", place, 0), seed_of("collect", place, 1)) for place in range(3)
    ]


def test_prompts_are_the_renderers(renderer, register, policy):
    """With the real engine: ids, template and default system prompt as everywhere else. Closes T3, T5, T41."""
    register("yes", lambda completion, truth: Score(1.0, "correct"))
    problems = problems_of(3, "yes")
    groups = collect(
        policy.engine(),
        policy.renderer,
        problems,
        samples_per_problem=2,
        sampling=SAMPLING,
        reward=Reward(),
        seed=lambda place, sample: seed_of(place, sample),
    )
    bos = policy.renderer.tokenizer.bos_token_id
    for problem, group in zip(problems, groups, strict=True):
        prompt = policy.renderer.prompt(problem.messages)
        assert prompt[0] == bos
        assert prompt[1] != bos
        for rollout in group.rollouts:
            assert rollout.prompt_ids == prompt
            assert rollout.completion.text == policy.renderer.decode(rollout.completion.ids)
            assert 1 <= len(rollout.completion.ids) <= 6
