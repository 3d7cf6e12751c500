"""What is measured while a stage trains: a line for each step that is due, and the weights worth keeping.

A step is measured before its checkpoint is written, so going on from a checkpoint misses none; a step that has
its line is not measured again. Weights are written before the line that makes them the best, and those before
them are removed after it, so that whatever kills the process, the best so far are there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.gather import gather_problems, identity
from posttrain.errors import CheckpointError, DataError, RecipeError
from posttrain.evaluation.run import answer
from posttrain.evaluation.statistics import estimate
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.folder import StageFolder, write_json
from posttrain.train.metrics import MetricsLog, read_metrics

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.config.measure import Benchmarks, Measure
    from posttrain.data.render import Renderer
    from posttrain.evaluation.preflight import Ready
    from posttrain.rollout.engine import Engine
    from posttrain.runtime.learner import Learner
    from posttrain.train.work import Work

SCORE = "eval/score"
Row = Mapping[str, Any]


def best_step(rows: Sequence[Row]) -> int | None:
    """The step with the highest score, the earliest of equals; the start, step 0, is no candidate."""
    scored = [row for row in rows if row["step"] > 0 and row.get(SCORE) is not None]
    if not scored:
        return None
    return int(min(scored, key=lambda row: (-row[SCORE], row["step"]))["step"])


class Measurements:
    """The measurements of one stage of `num_steps`. RecipeError when it is to keep a step that it has not."""

    def __init__(self, work: Work, settings: Measure, num_steps: int) -> None:
        self._work, self._settings = work, settings
        self._due = frozenset(settings.steps(num_steps))
        self._path = work.folder.measured
        self._kept = Checkpoints(work.folder.kept_weights, every=None)
        if isinstance(settings.keep, int) and settings.keep > num_steps:
            raise RecipeError(
                f"measure.keep is {settings.keep}, and {work.folder.name} has only {num_steps} steps"
            )
        best = best_step(read_metrics(self._path))
        if settings.keep == "best" and best is not None and not self._kept.has(best):
            raise CheckpointError(
                f"the weights of step {best}, the best so far, are not in {self._kept.folder}; "
                f"delete {work.folder.root} to train that stage again"
            )

    def take_if_due(
        self, step: int, learner: Learner, *, when_idle: Callable[[], object] = lambda: None
    ) -> None:
        """Measure the learner after `step` if that is due and not done, and keep its weights if they are wanted.

        `when_idle` returns once nobody else uses the engine, which has no weights afterwards.
        """
        if self._settings.keep == step and not self._kept.has(step):
            self._keep(step, learner)
        rows = read_metrics(self._path)
        if step not in self._due or any(row["step"] == step for row in rows):
            return
        when_idle()
        started = time.perf_counter()
        self._work.engine.load(learner.weights(), version=step)
        row: dict[str, Any] = {"step": step, **self._run_benchmarks(step), **self._answer_problems(step)}
        self._work.engine.unload()
        row["time/measure_seconds"] = time.perf_counter() - started
        if self._settings.keep == "best" and best_step([*rows, row]) == step:
            self._keep(step, learner)
        with MetricsLog(self._path) as log:
            log.write(step, {name: value for name, value in row.items() if name != "step"})
        if self._settings.keep == "best" and best_step([*rows, row]) == step:
            self._kept.drop_others(step)

    def _keep(self, step: int, learner: Learner) -> None:
        self._kept.save(step, {"weights": learner.state_dict()["weights"]})

    def _answer_problems(self, step: int) -> dict[str, float]:
        """Score of the problems, all answered afresh: what a kill left behind was of other weights, perhaps."""
        settings, work = self._settings.evaluation, self._work
        if settings is None:
            return {}
        out = work.folder.samples_at(step)
        out.unlink(missing_ok=True)
        problems, _ = gather_problems([settings.problems], seed=settings.seed)
        rows = answer(
            work.engine,
            work.renderer,
            problems,
            settings,
            out=out,
            progress=work.progress,
            label=f"measuring step {step}",
        )
        found = estimate([row["value"] for row in rows], [row["problem_id"] for row in rows])
        return {
            SCORE: found.mean,
            f"{SCORE}_stderr": found.stderr,
            f"{SCORE}_low": found.low,
            f"{SCORE}_high": found.high,
            "eval/problems": found.num_problems,
            "eval/stop_rate": sum(row["stop_reason"] == "stop" for row in rows) / len(rows),
            "eval/mean_length_tokens": sum(row["num_tokens"] for row in rows) / len(rows),
        }

    @cached_property
    def _benchmarks(self) -> tuple[Path, list[Ready]]:
        assert self._settings.benchmarks is not None
        work = self._work
        return ready_benchmarks(self._settings.benchmarks, work.renderer, work.engine, work.progress.console)

    def _run_benchmarks(self, step: int) -> dict[str, float]:
        """Primary metric of each benchmark and its error, in percent."""
        settings, work = self._settings.benchmarks, self._work
        if settings is None:
            return {}
        from posttrain.evaluation.benchmarks import Order, evaluate_task
        from posttrain.evaluation.subject import HeldModel

        data, ready = self._benchmarks
        model = HeldModel(
            f"{work.recipe.name}/{work.folder.name} at step {step}",
            work.engine,
            work.renderer,
            {
                "stage": work.folder.name,
                "step": step,
                "template_sha256": work.renderer.fingerprint,
                "dtype": str(work.dtype).removeprefix("torch."),
                "device": work.device.type,
            },
        )
        order = Order(
            tuple(one.task for one in ready),
            data,
            work.folder.benchmarks_at(step),
            limit=settings.limit,
            seed=settings.seed,
        )
        found: dict[str, float] = {}
        for one in ready:
            metric = evaluate_task(one, order, model, work.progress)
            found[f"benchmark/{one.task.name}_percent"] = metric.value
            if metric.stderr is not None:
                found[f"benchmark/{one.task.name}_stderr"] = metric.stderr
            found[f"benchmark/{one.task.name}_documents"] = len(one.chosen)
        return found


def take_kept(work: Work, learner: Learner) -> int:
    """Give `learner`, after its last step, the weights that are the stage's result; notes and returns their step."""
    settings, folder = work.stage.measure, work.folder
    assert settings is not None
    rows = read_metrics(folder.measured)
    num_steps = read_metrics(folder.metrics)[-1]["step"]
    step = {"best": best_step(rows), "last": num_steps}.get(str(settings.keep), settings.keep)
    assert isinstance(step, int)
    if settings.keep != "last":
        weights = Checkpoints(folder.kept_weights, every=None).load_step(step)["weights"]
        learner.load_state_dict({**learner.state_dict(), "weights": weights})
        work.progress.console.print(
            f"{folder.name}: its result is step {step:,} of {num_steps:,}", highlight=False, soft_wrap=True
        )
    candidates = [
        {"step": row["step"], "score": row[SCORE], "stderr": row.get(f"{SCORE}_stderr")}
        for row in rows
        if row["step"] > 0 and SCORE in row
    ]
    score = next((one["score"] for one in candidates if one["step"] == step), None)
    kept = {"keep": settings.keep, "step": step, "num_steps": num_steps, "score": score}
    write_json(folder.kept, {**kept, "candidates": candidates})
    return step


def clear_kept(folder: StageFolder) -> None:
    """Remove the kept weights; the finished stage's model has them."""
    Checkpoints(folder.kept_weights, every=None).clear()


def measure_identity(settings: Measure) -> dict[str, Any]:
    """What of `settings` decides a stage's result and curves, for its key: not where the data lies."""
    found = settings.model_dump(mode="json", exclude={"benchmarks": {"data"}})
    if (evaluation := settings.evaluation) is not None:
        found["rows"] = identity(evaluation.problems, seed=evaluation.seed)
    return found


def check_measure(settings: Measure, renderer: Renderer, engine: Engine, console: Console) -> None:
    """Read what will be measured, so that what is missing shows before the first step of the run."""
    if (evaluation := settings.evaluation) is not None:
        problems, _ = gather_problems([evaluation.problems], seed=evaluation.seed)
        if not problems[evaluation.used]:
            raise DataError(
                f"{evaluation.problems.label} has {len(problems):,} problems, and measure.evaluation.skip_problems "
                f"is {evaluation.skip_problems}; lower it"
            )
    if settings.benchmarks is not None:
        from posttrain.evaluation.preflight import check_sandbox

        _, ready = ready_benchmarks(settings.benchmarks, renderer, engine, console)
        if sentence := check_sandbox(ready):
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def ready_benchmarks(
    settings: Benchmarks, renderer: Renderer, engine: Engine, console: Console
) -> tuple[Path, list[Ready]]:
    """The folder of data, and the benchmarks with their documents.

    RecipeError for a benchmark that an engine alone cannot measure, DataError for data that is missing.
    """
    from posttrain.evaluation.hub import open_data
    from posttrain.evaluation.preflight import check_prompts, check_tasks
    from posttrain.evaluation.registry import find_preset, open_task

    preset = None if settings.preset is None else find_preset(settings.preset)
    tasks = [open_task(name, preset) for name in settings.tasks]
    for task in tasks:
        lacks = "a judge" if task.needs.judge else "log-probabilities" if task.decoding is None else ""
        if lacks:
            raise RecipeError(
                f"measure.benchmarks has {task.name}, which needs {lacks}; leave it out here and run "
                "`posttrain eval` on the finished model"
            )
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    data = open_data(settings.data or os.environ.get("POSTTRAIN_DATA"), tasks, say)
    ready = check_tasks(tasks, data, limit=settings.limit, judge=None)
    check_prompts(ready, renderer, engine.max_positions, data)
    return data, ready
