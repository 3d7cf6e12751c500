"""`posttrain eval --suite/--task`: generate, judge, score, and gather; every stage goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.evaluation.average import rounded
from posttrain.evaluation.generation import finished_samples, generate, score_continuations
from posttrain.evaluation.journal import Journal
from posttrain.evaluation.judges.judge import JudgedTask, open_judge
from posttrain.evaluation.outputs import RawRow, match_outputs
from posttrain.evaluation.preflight import Ready, check_disk, check_prompts, check_sandbox, check_tasks
from posttrain.evaluation.results import LIMITED, ResultsFolder, write_results
from posttrain.evaluation.scoring import Scoring, ask_judge, score_outputs, summary, write_scored
from posttrain.evaluation.task import Metric, Task
from posttrain.train.folder import write_json
from posttrain.train.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.evaluation.judges.judge import Judge
    from posttrain.evaluation.subject import Measurable, Subject
    from posttrain.evaluation.suite import Suite


@dataclass(frozen=True, slots=True)
class Order:
    """What to evaluate, on what, into where."""

    tasks: tuple[Task, ...]
    data: Path
    out: Path
    suite: Suite | None = None
    limit: int | None = None
    judge: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """An order that nothing but the model can keep from being run."""

    order: Order
    ready: tuple[Ready, ...]
    judge: Judge | None


def prepare(order: Order, console: Console) -> Prepared:
    """Check what does not need the model: data, judge, sandbox, disk. UserErrors say what is missing."""
    judge = open_judge(order.judge) if order.judge else None
    ready = check_tasks(order.tasks, order.data, limit=order.limit, judge=judge)
    if sentence := check_sandbox(ready):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    check_disk(ready, order.out, order.data)
    # one engine serves all tasks that generate; log-probabilities load the weights another way
    return Prepared(order, tuple(sorted(ready, key=lambda one: one.task.decoding is None)), judge)


def evaluate_benchmarks(prepared: Prepared, subject: Subject, console: Console) -> dict[str, Any]:
    """Run the order and write its results folder; what earlier runs left there is kept. Returns results.json.

    Prompts and old files are checked before the weights are loaded. Tasks without a judge are scored as soon
    as their outputs are there; the others when all are generated and the model is out of memory.
    """
    order, ready, folder = prepared.order, prepared.ready, ResultsFolder(prepared.order.out)
    folder.refuse_others(subject.identity, order.tasks[0].preset)
    check_prompts(ready, subject.renderer, subject.context_tokens, order.data)
    journals = {one.task.name: _journal(one, order, subject, folder) for one in ready}
    for journal in journals.values():
        with journal:  # an old file of another evaluation is refused now, not when its turn comes
            pass
    with Progress(console) as progress:
        if order.limit is not None:
            progress.warn(f"--limit {order.limit}: these numbers are not comparable with published ones")
        seconds = {}
        for one in ready:
            started = time.monotonic()
            _generate(one, order, subject, journals[one.task.name], progress)
            seconds[one.task.name] = time.monotonic() - started
            if not isinstance(one.task, JudgedTask):
                scoring = _score(one, order, subject, folder, None, seconds[one.task.name], progress)
                _say(one.task, scoring, progress)
        subject.release()
        for one in ready:
            if isinstance(one.task, JudgedTask):
                judge, spent = prepared.judge, seconds[one.task.name]
                _say(one.task, _score(one, order, subject, folder, judge, spent, progress), progress)
    return write_results(folder, order.suite)


def evaluate_task(one: Ready, order: Order, subject: Measurable, progress: Progress) -> Metric:
    """One benchmark without a judge, into `order.out`, where what is there is kept; its primary metric."""
    folder, started = ResultsFolder(order.out), time.monotonic()
    _generate(one, order, subject, _journal(one, order, subject, folder), progress)
    scoring = _score(one, order, subject, folder, None, time.monotonic() - started, progress)
    return scoring.result.metrics[one.task.primary]


def _journal(one: Ready, order: Order, subject: Measurable, folder: ResultsFolder) -> Journal:
    """The task's journal; the settings are all that an output depends on besides the document."""
    settings = {
        "task": one.task.name,
        "preset": one.task.preset,
        "decoding": asdict(one.task.decoding) if one.task.decoding else None,
        "data": dict(one.data_sha256),
        "model": subject.identity,
        "seed": order.seed,
    }
    return Journal(folder.outputs(one.task.name), settings)


def _generate(one: Ready, order: Order, subject: Measurable, journal: Journal, progress: Progress) -> None:
    samples = one.task.decoding.samples if one.task.decoding else 1
    with journal:
        done = finished_samples(journal, one.chosen, samples)
        if done == one.num_samples:
            return
        label = f"{one.task.name}: generating" if one.task.decoding else f"{one.task.name}: log-probabilities"
        with progress.track(label, one.num_samples, unit="samples", completed=done) as track:
            if one.task.decoding is None:
                score_continuations(
                    subject.scorer,
                    subject.renderer,
                    one.task,
                    one.chosen,
                    data=order.data,
                    journal=journal,
                    context_tokens=subject.context_tokens,
                    track=track,
                )
            else:
                generate(
                    subject.engine,
                    subject.renderer,
                    one.task,
                    one.chosen,
                    data=order.data,
                    journal=journal,
                    seed=order.seed,
                    track=track,
                )


def _score(
    one: Ready,
    order: Order,
    subject: Measurable,
    folder: ResultsFolder,
    judge: Judge | None,
    seconds: float,
    progress: Progress,
) -> Scoring:
    task, lines = one.task, _lines(one, folder)
    rows = match_outputs(lines, one.chosen)
    judgements = None
    if isinstance(task, JudgedTask) and judge is not None:
        judgements = ask_judge(task, rows, judge, folder.judgements(task.name), progress)
    scoring = score_outputs(task, one.chosen, rows, judgements=judgements, notes=_notes(one, order))
    write_scored(folder.scored(task.name), scoring.scored)
    result = _result(one, order, subject, scoring, lines)
    result |= {
        "judge": judge.name if judgements is not None and judge else None,
        "seconds": round(seconds, 3),
    }
    write_json(folder.result(task.name), result)
    return scoring


def _say(task: Task, scoring: Scoring, progress: Progress) -> None:
    """The card's number, for whoever waits."""
    progress.console.print(_line(task, scoring), markup=False, highlight=False)


def _line(task: Task, scoring: Scoring) -> str:
    metric = scoring.result.metrics.get(task.primary)
    if metric is None:
        return f"{task.title}: no {task.primary} from {scoring.result.n:,} documents"
    error = "" if metric.stderr is None else f" ± {rounded(metric.stderr)}"
    return f"{task.title}: {rounded(metric.value)}{error} ({scoring.result.n:,} documents)"


def _lines(one: Ready, folder: ResultsFolder) -> list[RawRow]:
    """The journal's rows of the chosen documents; a smaller --limit leaves others in it."""
    path, wanted = folder.outputs(one.task.name), {document.id for document in one.chosen}
    samples = one.task.decoding.samples if one.task.decoding else 1
    rows = Journal(path, {}).rows()
    return [
        RawRow(f"{path} line {number}", row)
        for number, row in enumerate(rows, start=1)
        if row["id"] in wanted and row["sample"] < samples
    ]


def _notes(one: Ready, order: Order) -> list[str]:
    if len(one.chosen) == len(one.documents):
        return []
    return [
        f"{LIMITED}: {len(one.chosen):,} of {len(one.documents):,} documents (--limit {order.limit}); "
        "not comparable with published figures"
    ]


def _result(
    one: Ready, order: Order, subject: Measurable, scoring: Scoring, lines: Sequence[RawRow]
) -> dict[str, Any]:
    task, limited = one.task, len(one.chosen) < len(one.documents)
    return {
        **summary(scoring.result),
        "title": task.title,
        "preset": task.preset,
        "source": task.source,
        "deviations": list(scoring.result.deviations),
        "notes": list(scoring.result.notes),
        "limit": {"asked": order.limit, "documents": len(one.documents)} if limited else None,
        "data": dict(one.data_sha256),
        "data_sources": dict(one.data_sources),
        "model": {"name": subject.name, **subject.identity},
        "seed": order.seed,
        "decoding": asdict(task.decoding) if task.decoding else None,
        "generated": _generated([line.values for line in lines]),
    }


def _generated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What generation came to: the budgets that were in force, how much was cut, why outputs ended."""
    budgets = [row["max_new_tokens"] for row in rows]
    return {
        "samples": len(rows),
        "tokens": sum(row["num_tokens"] for row in rows),
        "max_new_tokens": {"least": min(budgets), "most": max(budgets)},
        "stopped_by_length": sum(row["stop_reason"] == "length" for row in rows),
        "prompts_cut": sum(row["num_cut_tokens"] > 0 for row in rows),
        "tokenised_apart": sum(row.get("num_tokenised_apart", 0) for row in rows),
    }
