"""Statistics against hand arithmetic, scipy, brute force and simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from posttrain.errors import DataError, RecipeError
from posttrain.evaluation.statistics import (
    binomial_stderr,
    bootstrap_interval,
    by_problem,
    estimate,
    mean_and_stderr,
    minimal_detectable_difference,
    paired_difference,
    pass_at_k,
    wilson_interval,
)


def test_stderr_of_four_scores_by_hand():
    """Scores 0 0 1 1: mean 1/2, sum of squares 4 * 1/4 = 1, sd = sqrt(1/3), SE = sqrt(1/3) / 2."""
    mean, stderr = mean_and_stderr([0, 0, 1, 1])
    assert mean == 0.5
    assert stderr == pytest.approx(math.sqrt(1 / 3) / 2)


def test_stderr_equals_scipy_without_clusters():
    values = np.random.default_rng(0).beta(2, 3, size=57).tolist()
    assert mean_and_stderr(values)[1] == pytest.approx(stats.sem(values))
    assert mean_and_stderr(values, range(57))[1] == pytest.approx(stats.sem(values))


def test_clusters_of_equal_size_count_once():
    """With k samples each, the clustered SE is the SE of the problems' means; copies add nothing."""
    rng = np.random.default_rng(1)
    scores = rng.random((20, 4))
    problems = np.repeat(np.arange(20), 4).tolist()
    assert mean_and_stderr(scores.ravel().tolist(), problems)[1] == pytest.approx(
        stats.sem(scores.mean(axis=1))
    )
    once = rng.random(20)
    assert mean_and_stderr(np.repeat(once, 4).tolist(), problems)[1] == pytest.approx(stats.sem(once))


def test_clustered_stderr_of_unequal_clusters_by_hand():
    """Clusters {1, 1}, {0}, {0, 1, 0}: mean 1/2, residual sums 1, -1/2, -1/2, squares 3/2.

    SE = sqrt(3/2 * 3/2) / 6 = 1/4.
    """
    assert mean_and_stderr([1, 0, 1, 0, 1, 0], ["a", "b", "a", "c", "c", "c"])[1] == pytest.approx(0.25)


def test_one_problem_has_no_stderr_and_no_interval():
    found = estimate([1.0, 0.0, 1.0], ["a", "a", "a"])
    assert found.mean == pytest.approx(2 / 3)
    assert math.isnan(found.stderr) and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [0.5, math.inf]])
def test_scores_that_mean_nothing_are_refused(values):
    with pytest.raises(DataError):
        mean_and_stderr(values)


def test_binomial_stderr_of_a_published_row():
    """GSM8K has 1,319 items; at 0.87 the standard error is 0.93 points."""
    assert 100 * binomial_stderr(0.87 * 1319, 1319) == pytest.approx(0.926, abs=1e-3)


@pytest.mark.parametrize(("num_correct", "num_items"), [(0, 20), (1, 20), (17, 100), (50, 50), (660, 1319)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(num_correct, num_items, confidence):
    expected = stats.binomtest(num_correct, num_items).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(num_correct, num_items, confidence=confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_estimate_chooses_the_interval_that_fits():
    binary = estimate([1] * 17 + [0] * 83)
    assert (binary.low, binary.high) == pytest.approx(wilson_interval(17, 100))
    graded = [0.2, 0.4, 0.4, 0.7, 0.9]
    expected = stats.t.interval(0.95, 4, np.mean(graded), stats.sem(graded))
    found = estimate(graded)
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.num_problems, found.num_samples) == (5, 5)


def test_estimate_of_no_success_is_not_certain_to_be_zero():
    """20 problems failed 8 times each: no more certain than 20 failures, and never outside [0, 1]."""
    found = estimate([0.0] * 160, [i // 8 for i in range(160)])
    assert (found.low, found.high) == pytest.approx(wilson_interval(0, 20))
    assert found.high > 0.1
    assert estimate([0.0, 0.01, 0.9]).low == 0.0


@pytest.mark.parametrize("samples", [1, 4])
def test_intervals_cover_the_truth(samples):
    """Simulated models whose problems differ in difficulty: 95 % intervals hold the truth 93 to 97 times."""
    rng = np.random.default_rng(7)
    problems = np.repeat(np.arange(80), samples).tolist()
    covered = 0
    for _ in range(1000):
        difficulty = np.repeat(rng.beta(0.6, 1.4, size=80), samples)
        found = estimate((rng.random(80 * samples) < difficulty).astype(float).tolist(), problems)
        covered += found.low <= 0.3 <= found.high
    assert 930 <= covered <= 970


def test_paired_difference_equals_the_paired_t_test():
    rng = np.random.default_rng(2)
    old = rng.random(40)
    new = old + rng.normal(0.05, 0.2, size=40)
    names = [f"p{i}" for i in range(40)]
    found = paired_difference(dict(zip(names, old, strict=True)), dict(zip(names, new, strict=True)))
    expected = stats.ttest_rel(new, old)
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(new - old))
    assert found.difference / found.stderr == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.before, found.after) == pytest.approx((old.mean(), new.mean()))


def test_paired_difference_follows_names_not_order():
    before = {"a": 0.0, "b": 1.0, "c": 0.5}
    after = {"c": 0.75, "a": 0.25, "b": 1.25}
    found = paired_difference(before, after)
    assert found.difference == pytest.approx(0.25)
    assert found.stderr == pytest.approx(0, abs=1e-12)
    assert found.is_better and not found.is_worse
    backwards = paired_difference(after, before)
    assert backwards.is_worse and not backwards.is_better


def test_a_difference_within_the_noise_is_neither():
    found = paired_difference({"a": 0, "b": 1, "c": 0, "d": 1}, {"a": 1, "b": 0, "c": 0, "d": 1})
    assert not found.is_better and not found.is_worse


def test_runs_on_different_problems_are_refused():
    with pytest.raises(DataError, match="different problems"):
        paired_difference({"a": 0.0, "b": 1.0}, {"a": 0.0, "c": 1.0})
    with pytest.raises(DataError, match="at least 2"):
        paired_difference({"a": 0.0}, {"a": 1.0})


def test_minimal_detectable_difference_is_two_point_eight_standard_errors():
    """z(0.975) + z(0.8) = 1.95996 + 0.84162; and simulation finds it 80 times in 100."""
    assert minimal_detectable_difference(1.0) == pytest.approx(2.80158, abs=1e-5)
    rng = np.random.default_rng(3)
    found = abs(rng.normal(minimal_detectable_difference(0.02), 0.02, size=20_000)) > 1.959964 * 0.02
    assert found.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 4), (6, 3, 4)])
def test_pass_at_k_counts_every_draw(n, c, k):
    """Brute force: the share of all k-subsets that hold a correct sample."""
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_by_hand_and_its_limits():
    """n = 10, c = 3, k = 5: 1 - C(7, 5) / C(10, 5) = 1 - 21/252 = 11/12."""
    assert pass_at_k(10, 3, 5) == pytest.approx(11 / 12)
    with pytest.raises(RecipeError, match="samples_per_problem"):
        pass_at_k(4, 2, 10)
    with pytest.raises(ValueError, match="no meaning"):
        pass_at_k(4, 5, 2)


def test_by_problem_averages_samples():
    assert by_problem(["b", "a", "b"], [1.0, 0.5, 0.0]) == {"b": 0.5, "a": 0.5}
    with pytest.raises(ValueError):
        by_problem(["a"], [1.0, 2.0])


def test_bootstrap_agrees_with_the_closed_form_and_repeats():
    values = np.random.default_rng(4).normal(0.4, 0.1, size=200).tolist()
    low, high = bootstrap_interval(values, np.mean, seed=1)
    expected = stats.t.interval(0.95, 199, np.mean(values), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=0.002)
    assert bootstrap_interval(values, np.mean, seed=1) == (low, high)
    assert bootstrap_interval(values, np.mean, seed=2) != (low, high)
    with pytest.raises(DataError):
        bootstrap_interval([1.0], np.mean, seed=1)


def test_bootstrap_resamples_items_whole():
    """A statistic of pairs never sees a pair broken up."""
    pairs = [(i, i + 100) for i in range(10)]
    seen: list[tuple[int, int]] = []

    def spread(sample):
        seen.extend(sample)
        return float(len(set(sample)))

    bootstrap_interval(pairs, spread, seed=5, num_resamples=50)
    assert set(seen) == set(pairs)
    assert len(seen) == 500


def test_shuffling_the_samples_changes_nothing():
    rng = random.Random(6)
    rows = [(f"p{i % 9}", rng.random()) for i in range(30)]
    shuffled = rng.sample(rows, len(rows))
    first = estimate([value for _, value in rows], [name for name, _ in rows])
    second = estimate([value for _, value in shuffled], [name for name, _ in shuffled])
    assert (first.mean, first.stderr) == pytest.approx((second.mean, second.stderr))
