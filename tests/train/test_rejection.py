"""Rejection sampling: what is kept was verified in full and ended by itself."""

from __future__ import annotations

import pytest

from posttrain.records import Completion, Group, Message, Problem, Rollout, Score
from posttrain.train.rejection import best_rows, is_good, preference_rows


def rollout(text, verdict="correct", stop="stop", *, ids=None, value=None) -> Rollout:
    problem = Problem("p", (Message("user", "?"),), "", "string")
    ids = ids or tuple(3 + byte for byte in text.encode())
    completion = Completion(ids, (-1.0,) * len(ids), stop, text)
    value = (1.0 if verdict == "correct" else 0.0) if value is None else value
    return Rollout(problem, (9, 8), completion, Score(value, verdict), value)


def group(*rollouts, id="p") -> Group:
    return Group(Problem(id, (Message("user", "?"),), "", "string"), tuple(rollouts))


def texts(rows) -> list[str]:
    return [bytes(token - 3 for token in row.ids[2:]).decode() for row in rows]


MIXED = group(
    rollout("right"),
    rollout("right"),
    rollout("also right"),
    rollout("cut right", stop="length"),
    rollout("wrong", "wrong"),
    rollout("cut wrong", "wrong", "length"),
    rollout("odd", "unparseable"),
    rollout("broken", "error"),
)


def test_only_what_is_right_and_ended_is_good():
    """A reply that was cut teaches not to stop, however right; a verifier that failed proves nothing."""
    assert [r.completion.text for r in MIXED.rollouts if is_good(r)] == ["right", "right", "also right"]


def test_rows_are_different_good_completions():
    rows, dropped = best_rows([MIXED], keep=8, seed=1)
    assert sorted(texts(rows)) == ["also right", "right"]
    assert dropped.counts == {}
    assert len({row.id for row in rows}) == 2


def test_pairs_use_each_completion_once():
    """Two different right ones, so two pairs at most; neither a cut right one nor an error is rejected."""
    pairs, dropped = preference_rows([MIXED], keep=8, seed=1)
    chosen, rejected = zip(*pairs, strict=True)
    assert sorted(texts(chosen)) == ["also right", "right"]
    assert len(set(texts(rejected))) == 2
    assert set(texts(rejected)) <= {"wrong", "cut wrong", "odd"}
    assert dropped.counts == {}
    assert len({row.id for pair in pairs for row in pair}) == 4


@pytest.mark.parametrize("keep", [1, 2])
def test_at_most_keep_of_each_problem(keep):
    groups = [group(*(rollout(t) for t in "abc"), *(rollout(t, "wrong") for t in "xyz"), id="p")] * 3
    assert len(best_rows(groups, keep=keep, seed=1)[0]) == 3 * keep
    pairs = preference_rows(groups, keep=keep, seed=1)[0]
    assert len(pairs) == 3 * keep
    # the same problem three times over: ids still tell the rows apart
    assert len({row.id for pair in pairs for row in pair}) == 6 * keep


def test_problems_that_give_nothing_are_counted():
    none_right = group(rollout("x", "wrong"), rollout("cut", stop="length"))
    none_wrong = group(rollout("a"), rollout("b"))
    both = group(rollout("a"), rollout("x", "wrong"))
    assert best_rows([none_right, none_wrong, none_right], keep=1, seed=1)[1].counts == {
        "no_correct_completion": 2
    }
    pairs, dropped = preference_rows([none_right, none_wrong, both, none_wrong], keep=1, seed=1)
    assert dropped.counts == {"no_correct_completion": 1, "no_wrong_completion": 2}
    assert len(pairs) == 1 and texts(pairs[0]) == ["a", "x"]


def test_rows_are_the_sampled_tokens():
    """Ids that no encoder would give for their text come through untouched, prompt first. Closes T41."""
    odd = (250, 4, 251, 2)
    rows, _ = best_rows([group(rollout("ab", ids=odd))], keep=1, seed=1)
    assert rows[0].ids == (9, 8, *odd)
    assert rows[0].mask == (False, False, True, True, True, True)
    pairs, _ = preference_rows([group(rollout("ab", ids=odd), rollout("x", "wrong"))], keep=1, seed=1)
    assert pairs[0][0].ids == (9, 8, *odd) and pairs[0][0].mask[:3] == (False, False, True)


def test_the_choice_is_seeded():
    """The same seed, the same rows; other seeds choose others; problems do not all choose alike."""
    many = [group(*(rollout(t) for t in "abcdefgh"), id=f"p{i}") for i in range(8)]
    first = texts(best_rows(many, keep=1, seed=1)[0])
    assert texts(best_rows(many, keep=1, seed=1)[0]) == first
    assert texts(best_rows(many, keep=1, seed=2)[0]) != first
    assert len(set(first)) > 1
    # what one problem keeps does not depend on its neighbours' samples
    assert texts(best_rows([group(rollout("z")), *many[1:]], keep=1, seed=1)[0])[1:] == first[1:]
