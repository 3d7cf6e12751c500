"""What would fail hours later, found before the first token: data, judge, sandbox, templates, disk, old files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.render import Renderer
from posttrain.errors import CheckpointError, DataError, RecipeError
from posttrain.evaluation.datafile import data_sha256, data_source, find_data
from posttrain.evaluation.generation import CONTEXT_TOKENS
from posttrain.evaluation.judges.judge import judge_needed
from posttrain.evaluation.prompting import render, render_continuations
from posttrain.evaluation.selection import sample_evenly
from posttrain.evaluation.task import Document, Task

if TYPE_CHECKING:
    from posttrain.evaluation.judges.judge import Judge

_ROW_BYTES = 1024
"""Of an output and what is noted about it; prompts are counted as they are."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A task that can be run: its documents are read."""

    task: Task
    documents: tuple[Document, ...]
    """All of them, in the data file's order."""
    chosen: tuple[Document, ...]
    """Those to run."""
    data_sha256: Mapping[str, str]
    """Of each data file the task needs."""
    data_sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of those that are the hub's: id, revision, sha256 of its files."""

    @property
    def num_samples(self) -> int:
        """Outputs to generate; one a document for log-probabilities."""
        return len(self.chosen) * (self.task.decoding.samples if self.task.decoding else 1)


def check_tasks(tasks: Sequence[Task], data: Path, *, limit: int | None, judge: Judge | None) -> list[Ready]:
    """The tasks with their documents, or one sentence about what is missing first and how much more.

    DataError for data that is missing or malformed, RecipeError for a judge that was not given.
    """
    missing = [message for task in tasks if (message := _missing_data(task, data))]
    if missing:
        others = f" (and {len(missing) - 1} more tasks lack data)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}{others}")
    judged = [task for task in tasks if task.needs.judge]
    if judged and judge is None:
        raise RecipeError(f"{judge_needed(judged[0])}, or leave it out (--skip, or --suite no-judge)")
    return [_ready(task, data, limit) for task in tasks]


def check_prompts(ready: Sequence[Ready], renderer: Renderer, context_tokens: int, data: Path) -> None:
    """Render the first prompt of each task, so that a template that refuses one does so now."""
    for one in ready:
        prompt = one.task.prompt(one.chosen[0], data)
        if one.task.decoding is None:
            render_continuations(prompt, renderer, context_tokens=min(CONTEXT_TOKENS, context_tokens))
        else:
            render(prompt, renderer, one.task.decoding, model_context_tokens=context_tokens)


def check_sandbox(ready: Sequence[Ready]) -> str:
    """What contains generated programs, in a sentence; empty when no task runs any. SandboxError when too little."""
    if not any(one.task.needs.sandbox for one in ready):
        return ""
    from posttrain.rewards.sandbox.sandbox import check_sandbox as describe

    return describe()


def check_disk(ready: Sequence[Ready], out: Path, data: Path) -> None:
    """Refuse a disk on which not even the prompts and short outputs would fit."""
    needed = sum(_row_bytes(one, data) * one.num_samples for one in ready)
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{out} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "free some space or give another --out"
        )


def data_sources(task: Task, data: Path) -> dict[str, dict[str, Any]]:
    """Where the hub's files among the task's are from, by path below the data folder."""
    found = {relative: data_source(data, relative) for relative in task.needs.files}
    return {relative: source for relative, source in found.items() if source is not None}


def _missing_data(task: Task, data: Path) -> str:
    for relative in task.needs.files:
        try:
            find_data(data, relative)
        except DataError as error:
            return f"{task.name}: {error}"
    return ""


def _ready(task: Task, data: Path, limit: int | None) -> Ready:
    documents = task.documents(data)
    if len({document.id for document in documents}) < len(documents):
        raise DataError(
            f"{task.name}: two documents have the same id; its data files are not the published ones"
        )
    hashes = {relative: data_sha256(data, relative) for relative in task.needs.files}
    return Ready(
        task, tuple(documents), tuple(sample_evenly(documents, limit)), hashes, data_sources(task, data)
    )


def _row_bytes(ready: Ready, data: Path) -> int:
    prompt = ready.task.prompt(ready.chosen[0], data)
    text = (prompt.text or "") + "".join(message.content for message in prompt.messages)
    return len(text.encode("utf-8", "replace")) + _ROW_BYTES
