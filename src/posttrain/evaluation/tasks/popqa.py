"""PopQA: rare facts in a few words, 15-shot as on the cards, and the 405B card's three-shot variant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import RecipeError
from posttrain.evaluation.aggregate import mean_metric
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
from posttrain.evaluation.tasks.typed_rows import bad_row, first_rows, typed_rows
from posttrain.records import Message

TEST = "popqa/popqa_subset.jsonl"
EXEMPLARS = "fewshot/popqa16.json"
NEEDS = Needs(files=(TEST, EXEMPLARS))
DECODING = Decoding(max_new_tokens=15, stop=("\n\n",))
SUBSET = (
    "The data folder's questions are a subset, 2,830 of the 14,267 behind the cards, so their figure does not compare "
    "with the cards'; two models on the same subset compare with each other. The hub's are all of them.",
)
THREE_SHOT = (
    "No public configuration has this card's row: it is read as the 15-shot task with its first three exemplars.",
)


@dataclass(frozen=True, slots=True)
class PopQa:
    """PopQA under one preset (Mallen et al. 2023, arXiv:2212.10511); the presets differ in token budget."""

    preset: Preset
    decoding: Decoding
    deviations: tuple[str, ...]
    name: str = "popqa"
    title: str = "PopQA (15-shot)"
    source: str = "OLMES popqa::tulu"
    needs: Needs = NEEDS
    num_shots: int = 15
    primary: str = "exact_match"

    def documents(self, data: Path) -> list[Document]:
        """The questions that are here, by PopQA's own ids. DataError for one without accepted answers."""
        documents = []
        rows = typed_rows(data, TEST, {"id": int, "question": str})
        for number, row in enumerate(rows, start=1):
            if not (aliases := _aliases(row.get("possible_answers"))):
                raise bad_row(TEST, number, "`possible_answers` must be a list of texts")
            documents.append(Document(str(row["id"]), {**row, "possible_answers": aliases}))
        return documents

    def prompt(self, document: Document, data: Path) -> Prompt:
        """The first exemplars of the published sixteen as earlier turns, the item's own property included."""
        messages = []
        for exemplar in first_rows(data, EXEMPLARS, self.num_shots, {"question": str, "obj": str}):
            messages.append(Message("user", _question(exemplar["question"])))
            messages.append(Message("assistant", exemplar["obj"].strip()))
        return Prompt((*messages, Message("user", _question(document.fields["question"]))))

    def score(self, rows: Sequence[tuple[Document, Sequence[Output]]]) -> list[ItemScore]:
        """1 when the first output holds an accepted answer, be it inside a word."""
        scores = []
        for document, outputs in rows:
            found = alias_in(str(outputs[0]), document.fields["possible_answers"])
            reason = "holds no accepted answer" if found is None else ""
            scores.append(ItemScore({"exact_match": float(found is not None)}, found, reason))
        return scores

    def aggregate(self, scored: Sequence[Scored]) -> dict[str, Metric]:
        """The mean over questions."""
        return {"exact_match": mean_metric([one.score.metrics["exact_match"] for one in scored])}


def alias_in(output: str, aliases: Sequence[str]) -> str | None:
    """The first alias that `output` holds as it is, in lower case, or with its first letter alone upper.

    None without one. `output` itself is not changed: "NEW YORK" does not hold "New York", "usa" holds "US".
    """
    for alias in aliases:
        if alias in output or alias.lower() in output or alias.capitalize() in output:
            return alias
    return None


def _aliases(value: Any) -> list[str]:
    """The accepted answers, which the hub's file keeps as JSON text; none when they are malformed."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    well_formed = isinstance(value, list) and all(isinstance(alias, str) for alias in value)
    return value if well_formed else []


def _question(question: str) -> str:
    return f"Q: {question} A:"


def task(preset: Preset, variant: str = "") -> PopQa:
    """The task under `preset`: the 15-shot row, or the 405B card's with the variant `3shot`."""
    decoding, deviations = budgeted(DECODING, preset), (*SUBSET, *budget_deviations(preset))
    if not variant:
        return PopQa(preset, decoding, deviations)
    if variant != "3shot":
        raise RecipeError(f"popqa has no variant {variant!r}; leave it out, or give 3shot")
    return PopQa(
        preset,
        decoding,
        (*THREE_SHOT, *deviations),
        name="popqa_3shot",
        title="PopQA (3-shot)",
        source="Tülu 3 405B card; OLMES popqa::tulu with three exemplars",
        num_shots=3,
    )
