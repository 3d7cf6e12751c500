"""Rows as they are found in the wild, made into conversations, preferences and problems.

Left out, and refused rather than dropped: tool calls, separate reasoning, and content that is not text.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from posttrain.data.sources import RowSource
from posttrain.errors import DataError
from posttrain.records import Conversation, Message, Preference, Problem

ROLES = ("system", "user", "assistant")

_UNSUPPORTED = (
    "tool_calls", "tool_call_id", "functions", "function_calls", "function_call",
    "reasoning_content", "reasoning", "thinking",
)  # fmt: skip

VERIFIER_NAMES = {
    "MATH": "math",
    "openai/gsm8k": "gsm8k",
    "lighteval/MATH": "math",
    "DigitalLearningGmbH/MATH-lighteval": "math",
    "HuggingFaceH4/MATH-500": "math",
}
"""Names that published data sets give, and the verifier each means; other names stand for themselves."""

Item = TypeVar("Item", Conversation, Preference, Problem)


def parse_conversation(
    row: Mapping[str, Any], *, place: str, default_id: str = "", source: str = ""
) -> Conversation:
    """A row with `messages`, or with `prompt` and `completion` (each a string or a list of messages).

    Whether there is an assistant turn to learn is asked when rows are made; those without are counted then.
    """
    row = _without_none(row)
    _refuse_tools(row, place)
    if "messages" in row:
        messages = _messages(row["messages"], place, "messages")
    elif "prompt" in row and "completion" in row:
        messages = _turns(row, "prompt", "user", place) + _turns(row, "completion", "assistant", place)
    else:
        raise DataError(
            f"{place}: needs the column 'messages', or 'prompt' and 'completion'; {_columns(row)}"
        )
    return Conversation(_id(row, default_id), messages, _source(row, source))


def parse_preference(
    row: Mapping[str, Any], *, place: str, default_id: str = "", source: str = ""
) -> Preference:
    """A row with `chosen` and `rejected`: full message lists, or replies (strings or lists) to `prompt`.

    Refused: sides that do not share their prompt, do not end in an assistant turn, or are equal.
    """
    row = _without_none(row)
    _refuse_tools(row, place)
    for column in ("chosen", "rejected"):
        if column not in row:
            raise DataError(f"{place}: needs the columns 'chosen' and 'rejected'; {_columns(row)}")
    chosen, rejected = (_side(row, column, place) for column in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{place}: chosen and rejected are equal; remove the row, it has nothing to teach")
    if chosen[:-1] != rejected[:-1]:
        raise DataError(
            f"{place}: chosen and rejected differ before their last turn; they must share their prompt"
        )
    return Preference(_id(row, default_id), chosen, rejected, _source(row, source))


def parse_problem(
    row: Mapping[str, Any], *, place: str, default_id: str = "", source: str = "", verifier: str | None = None
) -> Problem:
    """A prompt with a checkable answer, in one of three forms:

    - `messages`, `ground_truth` and `dataset` (the verifier's name; one-element lists are unpacked);
    - `prompt`, `data_source` and `reward_model.ground_truth` (verl);
    - `prompt` and `solution` (TRL), checked by `math` unless there is a `dataset` column.

    `verifier` overrides the name in the row. The last message is dropped if, and only if, it is an assistant
    turn: then it is the gold answer and not part of the prompt.
    """
    row = _without_none(row)
    _refuse_tools(row, place)
    if "messages" in row:
        messages = _messages(row["messages"], place, "messages")
    elif "prompt" in row:
        messages = _turns(row, "prompt", "user", place)
    else:
        raise DataError(f"{place}: needs the column 'messages' or 'prompt'; {_columns(row)}")
    if messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(f"{place}: has an answer but no prompt before it")
    truth, name = _truth(row, place)
    name = verifier if verifier is not None else name
    if not name:
        raise DataError(f"{place}: needs the column 'dataset' that names its verifier; {_columns(row)}")
    return Problem(
        _id(row, default_id), messages, truth, VERIFIER_NAMES.get(name, name), _source(row, source)
    )


def read_conversations(source: RowSource) -> list[Conversation]:
    """Every row of `source` as a conversation; a DataError names the file and line that cannot be one."""
    return _read(source, parse_conversation)


def read_preferences(source: RowSource) -> list[Preference]:
    """Every row of `source` as a preference; a DataError names the file and line that cannot be one."""
    return _read(source, parse_preference)


def read_problems(source: RowSource, *, verifier: str | None = None) -> list[Problem]:
    """Every row of `source` as a problem; a DataError names the file and line that cannot be one."""

    def parse(row: Mapping[str, Any], *, place: str, default_id: str, source: str) -> Problem:
        return parse_problem(row, place=place, default_id=default_id, source=source, verifier=verifier)

    return _read(source, parse)


def _read(source: RowSource, parse: Callable[..., Item]) -> list[Item]:
    items = [
        parse(row.values, place=row.place, default_id=row.default_id, source=source.name) for row in source
    ]
    if not items:
        raise DataError(f"{source.name} has no rows; give a source that has some")
    return _unique(items)


def _unique(items: Iterable[Item]) -> list[Item]:
    """The items with `#2`, `#3` ... after an id seen before: reference log-probabilities are kept by id."""
    seen: Counter[str] = Counter()
    unique: list[Item] = []
    for item in items:
        id = item.id
        while seen[id]:
            seen[item.id] += 1
            id = f"{item.id}#{seen[item.id]}"
        seen[id] += 1
        unique.append(item if id == item.id else dataclasses.replace(item, id=id))
    return unique


def _messages(value: object, place: str, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{place}: {column!r} must be a list of messages with at least one in it")
    return tuple(_message(turn, place, f"{column}[{i}]") for i, turn in enumerate(value))


def _message(turn: object, place: str, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{place}: {where} must be an object with 'role' and 'content'")
    turn = _without_none(turn)
    for key in _UNSUPPORTED:
        if turn.get(key):
            raise DataError(
                f"{place}: {where} has {key!r}, which is not supported; write it into the content or drop it"
            )
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise DataError(f"{place}: {where} has the role {role!r}; it must be one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise DataError(f"{place}: {where} has no text in 'content'; it must be a string")
    return Message(role, content)


def _turns(row: Mapping[str, Any], column: str, role: str, place: str) -> tuple[Message, ...]:
    """A column that is one turn's text or a list of messages."""
    value = row[column]
    return (Message(role, value),) if isinstance(value, str) else _messages(value, place, column)


def _side(row: Mapping[str, Any], column: str, place: str) -> tuple[Message, ...]:
    turns = _turns(row, column, "assistant", place)
    # Tülu mixes carry `prompt` beside full lists; a list that opens with the reply needs it.
    if turns[0].role == "assistant":
        if "prompt" not in row:
            raise DataError(
                f"{place}: {column!r} is only a reply; add the column 'prompt' or give full message lists"
            )
        turns = _turns(row, "prompt", "user", place) + turns
    if turns[-1].role != "assistant":
        raise DataError(f"{place}: {column!r} must end in an assistant turn, not {turns[-1].role!r}")
    return turns


def _truth(row: Mapping[str, Any], place: str) -> tuple[Any, str]:
    """The ground truth and the verifier's name, which is empty if the row gives none."""
    name = row.get("dataset", row.get("data_source", ""))
    if "ground_truth" in row:
        truth = row["ground_truth"]
    elif isinstance(row.get("reward_model"), Mapping) and row["reward_model"].get("ground_truth") is not None:
        truth = row["reward_model"]["ground_truth"]
    elif "solution" in row:
        truth, name = row["solution"], name or "math"
    else:
        raise DataError(
            f"{place}: needs the column 'ground_truth', 'reward_model.ground_truth' or 'solution'; "
            f"{_columns(row)}"
        )
    if isinstance(name, list):
        if len(name) != 1:
            raise DataError(
                f"{place}: 'dataset' names {len(name)} verifiers; a row is checked by exactly one"
            )
        name = name[0]
        truth = truth[0] if isinstance(truth, list) and len(truth) == 1 else truth
    if not isinstance(name, str):
        raise DataError(f"{place}: 'dataset' must be the name of a verifier, not {type(name).__name__}")
    return truth, name


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Arrow gives every row every key that any row has, as None: those say nothing."""
    return {key: value for key, value in row.items() if value is not None}


def _refuse_tools(row: Mapping[str, Any], place: str) -> None:
    if row.get("tools") not in (None, "", "[]", []):
        raise DataError(f"{place}: has 'tools', which are not supported; remove the column or the row")


def _id(row: Mapping[str, Any], default: str) -> str:
    return str(row["id"]) if "id" in row else default


def _source(row: Mapping[str, Any], default: str) -> str:
    return row["source"] if isinstance(row.get("source"), str) else default


def _columns(row: Mapping[str, Any]) -> str:
    return f"it has: {', '.join(map(str, row)) or 'none'}"
