"""Rows of hub data sets as the data folder has them: one function a data set, from a row to a row.

Each docstring says which columns are read. A row that cannot be turned raises ValueError, TypeError or KeyError;
whoever calls says which one it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
_DROP_FIELDS = ("number", "spans", "date")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row was read."""

    file: str
    """Its path in the data set's repository."""
    index: int
    """Its number in the file, from 0."""


Convert = Callable[[Row, Place], dict[str, Any]]


def columns(*names: str) -> Convert:
    """These columns as they are, and no others."""
    return lambda row, place: {name: row[name] for name in names}


def mmlu(row: Row, place: Place) -> dict[str, Any]:
    """`answer` is the place of the right choice, from 0; here it is its letter."""
    number = row["answer"]
    if type(number) is not int or not 0 <= number < len(row["choices"]):
        raise ValueError(f"`answer` is {number!r}, the place of no choice")
    return {
        "subject": row["subject"],
        "question": row["question"],
        "choices": list(row["choices"]),
        "answer": chr(ord("A") + number),
    }


def truthfulqa(row: Row, place: Place) -> dict[str, Any]:
    """`mc1_targets` and `mc2_targets` are two lists, choices and labels; here an object of both."""
    targets = {name: _labelled(row[name]) for name in ("mc1_targets", "mc2_targets")}
    return {"question": row["question"], **targets}


def popqa(row: Row, place: Place) -> dict[str, Any]:
    """Tab-separated text: numbers are digits, and `possible_answers` is a JSON list."""
    numbers = {name: int(row[name]) for name in ("id", "s_pop", "o_pop")}
    texts = {name: row[name] for name in ("question", "subj", "prop", "obj")}
    return {**numbers, **texts, "possible_answers": json.loads(row["possible_answers"])}


def bbh(row: Row, place: Place) -> dict[str, Any]:
    """The subtask is the folder that the file is in."""
    return {"task": place.file.partition("/")[0], "input": row["input"], "target": row["target"]}


def drop(row: Row, place: Place) -> dict[str, Any]:
    """The prompt, and the accepted answers as one text with bars between: `answer`, then `validated_answers`.

    An answer is its number, else its spans, else its date, and stands once; several spans are joined by " and ",
    as in the data folder's file. `validated_answers` holds one list for each field of an answer.
    """
    validated = row["validated_answers"]
    others = zip(*(validated[name] for name in _DROP_FIELDS), strict=True)
    answers = [_drop_answer(*one) for one in [(row["answer"][name] for name in _DROP_FIELDS), *others]]
    texts = [" and ".join(spans) for spans in dict.fromkeys(answers)]
    return {
        "context": f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:",
        "completion": f" {texts[0]}",
        "ref_text": "|".join(texts),
    }


def ifeval(row: Row, place: Place) -> dict[str, Any]:
    """`kwargs` without the arguments that are null: an instruction has only its own."""
    kwargs = [{name: value for name, value in one.items() if value is not None} for one in row["kwargs"]]
    return {**{name: row[name] for name in ("key", "prompt", "instruction_id_list")}, "kwargs": kwargs}


def alpaca_eval(row: Row, place: Place) -> dict[str, Any]:
    """The baseline's outputs in evaluation order, which the row's place is."""
    return {"index": place.index, **{name: row[name] for name in ("dataset", "instruction", "output")}}


def _labelled(targets: Mapping[str, Any]) -> dict[str, int]:
    found = dict(zip(targets["choices"], targets["labels"], strict=True))
    if len(found) < len(targets["choices"]):
        raise ValueError("a choice comes twice")
    return found


def _drop_answer(number: str, spans: list[str], date: Mapping[str, str]) -> tuple[str, ...]:
    if number:
        return (number,)
    return tuple(spans) or (" ".join(date[part] for part in ("day", "month", "year")),)
