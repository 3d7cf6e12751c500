"""MATH, four-shot with chain of thought, scored by Minerva's strict rule and by the cards' flexible one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import RecipeError
from posttrain.evaluation.aggregate import macro_metric, mean_metric
from posttrain.evaluation.task import (
    Decoding,
    Document,
    ItemScore,
    Metric,
    Needs,
    Output,
    Preset,
    Prompt,
    Scored,
)
from posttrain.evaluation.tasks.budget import budget_deviations, budgeted
from posttrain.evaluation.tasks.math_hendrycks import same_spelling
from posttrain.evaluation.tasks.math_minerva import (
    INVALID,
    boxed_answer,
    flexible_answers,
    normalize,
    strict_answer,
)
from posttrain.evaluation.tasks.math_sympy import Equality, Pair, equalities
from posttrain.evaluation.tasks.typed_rows import bad_row, first_rows, typed_rows
from posttrain.records import Message

TEST = "math/test.jsonl.gz"
EXEMPLARS = "fewshot/math_minerva4.json"
NEEDS = Needs(files=(TEST, EXEMPLARS))
DEVIATIONS = (
    "The data folder's problems are a copy that may be lightly cleaned: no solution holds `\\fbox`, or `\\boxed` and "
    "a space.",
    "sympy's five seconds for a comparison are of this machine's time; a pair that overruns is tried twice.",
)


@dataclass(frozen=True, slots=True)
class Math:
    """MATH under one preset (Hendrycks et al. 2021, arXiv:2103.03874); the presets differ in token budget."""

    preset: Preset
    decoding: Decoding
    deviations: tuple[str, ...]
    name: str = "math"
    title: str = "MATH (4-shot CoT, Flex)"
    primary: str = "exact_match_flex"
    source: str = "OLMES minerva_math::tulu"
    needs: Needs = NEEDS

    def documents(self, data: Path) -> list[Document]:
        """The 5,000 test problems; a subject is a group. DataError for a solution without an answer."""
        rows = typed_rows(data, TEST, {"problem": str, "type": str, "solution": str})
        return [_document(index, row) for index, row in enumerate(rows)]

    def prompt(self, document: Document, data: Path) -> Prompt:
        """Minerva's four exemplars as earlier turns, the same for every subject, then the problem."""
        messages = []
        for exemplar in first_rows(data, EXEMPLARS, 4, {"problem": str, "solution": str}):
            messages.append(Message("user", _question(exemplar["problem"])))
            messages.append(Message("assistant", exemplar["solution"].strip()))
        return Prompt((*messages, Message("user", _question(document.fields["problem"]))))

    def score(self, rows: Sequence[tuple[Document, Sequence[Output]]]) -> list[ItemScore]:
        """`exact_match` is Minerva's strict rule; `exact_match_flex` takes any candidate answer.

        The strict rule always asks sympy. The flexible one asks it only where no candidate is spelled as the
        gold answer, which decides the same since either suffices.
        """
        readings = [_read(document, str(outputs[0])) for document, outputs in rows]
        verdicts = equalities(pair for reading in readings for pair in reading.pairs())
        return [reading.score(verdicts) for reading in readings]

    def aggregate(self, scored: Sequence[Scored]) -> dict[str, Metric]:
        """Both metrics as means over subjects, as on the cards, and over problems (`_micro`)."""
        metrics = {}
        for name in ("exact_match_flex", "exact_match"):
            by_subject: dict[str, list[float]] = {}
            for one in scored:
                by_subject.setdefault(one.document.group, []).append(one.score.metrics[name])
            metrics[name] = macro_metric(by_subject)
            metrics[f"{name}_micro"] = mean_metric([one.score.metrics[name] for one in scored])
        return metrics


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read from one output, before sympy is asked."""

    gold: str
    strict: str
    candidates: tuple[str, ...]
    spelled_alike: bool
    """Some candidate is spelled as the gold answer."""

    def pairs(self) -> list[Pair]:
        """What sympy must decide for both metrics."""
        asked = [] if self.spelled_alike else list(self.candidates)
        return [(answer, self.gold) for answer in (*self._strict_answers(), *asked)]

    def score(self, verdicts: dict[Pair, Equality]) -> ItemScore:
        found = [verdicts[pair] for pair in self.pairs()]
        strict = any(verdicts[answer, self.gold].equal for answer in self._strict_answers())
        flexible = self.spelled_alike or any(verdict.equal for verdict in found)
        reasons = [] if strict else [verdict.reason for verdict in found if verdict.reason]
        return ItemScore(
            metrics={"exact_match_flex": float(flexible), "exact_match": float(strict)},
            extracted={"strict": self.strict, "candidates": list(self.candidates)},
            reason="; ".join(dict.fromkeys(reasons)),
        )

    def _strict_answers(self) -> list[str]:
        """The strict answer if there is one; the mark of a missing one equals no gold answer."""
        return [] if self.strict == INVALID else [self.strict]


def _read(document: Document, output: str) -> _Reading:
    gold = document.fields["gold"]
    candidates = tuple(flexible_answers(output))
    alike = any(same_spelling(candidate, gold) for candidate in candidates)
    return _Reading(gold, strict_answer(output), candidates, alike)


def _document(index: int, row: dict[str, Any]) -> Document:
    gold = boxed_answer(row["solution"])
    if gold is None:
        raise bad_row(TEST, index + 1, "`solution` must hold its answer in a box")
    return Document(str(index), {**row, "gold": normalize(gold)}, group=row["type"])


def _question(problem: str) -> str:
    return f"Problem:\n{problem}\n\nSolution:"


def task(preset: Preset, variant: str = "") -> Math:
    """The task under `preset`; there is one variant, the cards'."""
    if variant:
        raise RecipeError(f"math has no variant {variant!r}; leave it out")
    return Math(
        preset, budgeted(Decoding(max_new_tokens=1024), preset), (*DEVIATIONS, *budget_deviations(preset))
    )
