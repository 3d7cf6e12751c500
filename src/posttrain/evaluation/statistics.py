"""Intervals, paired comparisons and pass@k for scores of language models.

Sources: Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640) for clustered and paired standard
errors and for power; Chen et al. 2021 (arXiv:2107.03374) for pass@k; Wilson 1927 for binary scores.
Scores are fractions in [0, 1]; standard errors and intervals are in the same unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import ndtri, stdtrit

from posttrain.errors import DataError, RecipeError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean score with its standard error and interval.

    `stderr`, `low` and `high` are NaN when there is a single problem, which says nothing about spread.
    """

    mean: float
    stderr: float
    low: float
    high: float
    num_problems: int
    num_samples: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean of `after - before` over the same problems, with its standard error and interval."""

    before: float
    after: float
    difference: float
    stderr: float
    low: float
    high: float
    num_problems: int

    @property
    def is_better(self) -> bool:
        """True when the whole interval lies above zero."""
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        """True when the whole interval lies below zero."""
        return self.high < 0


def mean_and_stderr(
    values: Sequence[float], problems: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """The mean of `values` (n,) and its standard error; samples of one problem may be correlated.

        SE = sqrt( C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2 ) / n

    over the C problems named by `problems` (n,), or over single values without it. The sum is Miller's
    clustered variance (arXiv:2411.00640, section 2.2); the factor C / (C - 1) makes it the usual
    sd / sqrt(n) with one sample per problem. NaN when C is 1. DataError when `values` is empty.
    """
    if not len(values):
        raise DataError("there are no scores to average; the evaluation wrote no samples")
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise DataError("a score is not a finite number; every sample needs a value in [0, 1]")
    mean = float(x.mean())
    residuals = _sum_by(x - mean, problems)
    num_clusters = len(residuals)
    if num_clusters < 2:
        return mean, math.nan
    variance = num_clusters / (num_clusters - 1) * float(np.square(residuals).sum())
    return mean, math.sqrt(variance) / len(x)


def estimate(
    values: Sequence[float], problems: Sequence[Hashable] | None = None, *, confidence: float = 0.95
) -> Estimate:
    """Mean, standard error and interval of scores in [0, 1].

    Binary scores with one sample per problem get Wilson's interval. So do scores without any spread,
    counted once per problem: a model that fails 20 of 20 is not known to score exactly zero. All others
    get Student's t with C - 1 degrees of freedom, cut at 0 and 1.
    """
    mean, stderr = mean_and_stderr(values, problems)
    num_problems = len(values) if problems is None else len(set(problems))
    binary = all(value in (0, 1) for value in values)
    if num_problems < 2:
        low = high = math.nan
    elif stderr == 0 or (binary and num_problems == len(values)):
        low, high = wilson_interval(mean * num_problems, num_problems, confidence=confidence)
    else:
        reach = float(stdtrit(num_problems - 1, 0.5 + confidence / 2)) * stderr
        low, high = max(0.0, mean - reach), min(1.0, mean + reach)
    return Estimate(mean, stderr, low, high, num_problems, len(values))


def binomial_stderr(num_correct: float, num_items: int) -> float:
    """sqrt(p (1 - p) / n) for p = num_correct / num_items: the closed form when scores are 0 or 1."""
    share = num_correct / num_items
    return math.sqrt(share * (1 - share) / num_items)


def wilson_interval(num_correct: float, num_items: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion that stays inside [0, 1] and is honest near its ends (Wilson 1927, eq. 4)."""
    z = float(ndtri(0.5 + confidence / 2))
    share = num_correct / num_items
    shrink = 1 + z * z / num_items
    centre = (share + z * z / (2 * num_items)) / shrink
    reach = z / shrink * math.sqrt(share * (1 - share) / num_items + z * z / (4 * num_items**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def bootstrap_interval(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    *,
    seed: int,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap of a `statistic` that has no closed form (Efron 1979); same seed, same answer.

    `items` are resampled whole: where samples of one problem belong together, pass one item per problem.
    """
    if len(items) < 2:
        raise DataError(f"a bootstrap needs at least 2 items, and there are {len(items)}")
    stream = np.random.default_rng(seed)
    draws = [
        statistic([items[i] for i in stream.integers(0, len(items), len(items))])
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def by_problem(problems: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Mean value of each problem's samples, in order of first appearance."""
    grouped: dict[str, list[float]] = {}
    for problem, value in zip(problems, values, strict=True):
        grouped.setdefault(problem, []).append(value)
    return {problem: math.fsum(group) / len(group) for problem, group in grouped.items()}


def paired_difference(
    before: Mapping[str, float], after: Mapping[str, float], *, confidence: float = 0.95
) -> Paired:
    """Compare two runs on the same problems; both map a problem's id to its mean score.

    The standard error is sd(differences) / sqrt(n): noise that both runs share cancels
    (arXiv:2411.00640, section 4.2). The interval is Student's t with n - 1 degrees of freedom.
    DataError when the problems differ, or when there are fewer than two.
    """
    if before.keys() != after.keys():
        stray = len(before.keys() ^ after.keys())
        raise DataError(
            f"the two runs answered different problems ({stray} are in only one of them); "
            "evaluate both on the same set"
        )
    if len(before) < 2:
        raise DataError(f"a paired comparison needs at least 2 problems, and there are {len(before)}")
    old = np.array([before[problem] for problem in before], dtype=np.float64)
    new = np.array([after[problem] for problem in before], dtype=np.float64)
    difference, stderr = mean_and_stderr((new - old).tolist())
    reach = float(stdtrit(len(old) - 1, 0.5 + confidence / 2)) * stderr
    return Paired(
        before=float(old.mean()),
        after=float(new.mean()),
        difference=difference,
        stderr=stderr,
        low=difference - reach,
        high=difference + reach,
        num_problems=len(old),
    )


def minimal_detectable_difference(stderr: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `alpha` finds with probability `power`.

        (z_{1 - alpha / 2} + z_power) * stderr

    for the standard error of the (paired) difference (arXiv:2411.00640, section 5).
    """
    return float(ndtri(1 - alpha / 2) + ndtri(power)) * stderr


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is correct, from n samples of which c are.

        1 - C(n - c, k) / C(n, k)            (arXiv:2107.03374, eq. 1)

    RecipeError when n < k: the estimate does not exist.
    """
    if num_samples < k:
        raise RecipeError(
            f"pass@{k} needs at least {k} samples per problem, and there are {num_samples}; "
            f"raise samples_per_problem or lower k"
        )
    if k < 1 or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@k of {num_correct} correct out of {num_samples} with k = {k} has no meaning")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def _sum_by(values: np.ndarray, problems: Sequence[Hashable] | None) -> np.ndarray:
    """(C,): sums of `values` (n,) over each problem; `values` themselves without `problems`."""
    if problems is None:
        return values
    if len(problems) != len(values):
        raise ValueError(f"{len(values)} values but {len(problems)} problem names")
    index: dict[Hashable, int] = {}
    where = [index.setdefault(problem, len(index)) for problem in problems]
    return np.bincount(where, weights=values, minlength=len(index))
