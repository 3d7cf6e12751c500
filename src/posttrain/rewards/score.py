"""Scoring many replies at once: order and count are kept whatever fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from posttrain.records import Score
from posttrain.rewards.pool import shared_pool
from posttrain.rewards.verifier import find_verifier
from posttrain.rewards.worker import attempt

ScoreRow = tuple[str, str, Any]
"""(verifier name, completion, ground truth)."""


def check_names(names: Iterable[str]) -> None:
    """Raise RecipeError if one of `names` is no verifier; call it before the first step."""
    for name in sorted(set(names)):
        find_verifier(name)


def score_many(
    rows: Sequence[ScoreRow], *, timeout_seconds: float = 5.0, workers: int | None = None
) -> list[Score]:
    """One score per row, in order. May be called from any thread, coroutine or process.

    Light verifiers run here; heavy ones in the shared process pool, `timeout_seconds` each. A row whose
    check raises, dies or takes too long scores 0 with verdict "error" and the reason. `workers` defaults
    to the number of cores, eight at most. Raises RecipeError for a name that no verifier has.
    """
    verifiers = [find_verifier(name) for name, _, _ in rows]
    heavy = [index for index, verifier in enumerate(verifiers) if verifier.heavy]
    heavy_calls = [(verifiers[index].check, (rows[index][1], rows[index][2])) for index in heavy]
    outcomes: dict[int, tuple[bool, Any]] = {}
    if heavy:
        pooled = shared_pool(workers).run(heavy_calls, timeout_seconds=timeout_seconds)
        outcomes.update(zip(heavy, pooled, strict=True))
    for index, (_, completion, ground_truth) in enumerate(rows):
        if index not in outcomes:
            outcomes[index] = attempt(verifiers[index].check, (completion, ground_truth))
    return [_as_score(*outcomes[index]) for index in range(len(rows))]


def _as_score(done: bool, result: Any) -> Score:
    if not done:
        return Score(0.0, "error", str(result))
    if not isinstance(result, Score):
        return Score(0.0, "error", f"the check gave {type(result).__name__}, not a Score")
    return result
