"""A run that ends by SIGKILL at a chosen moment: executed by `test_resume` in a process of its own.

The global `case` it is given has `recipe` (a file), `overrides` (a list), `moment` (a key of MOMENTS), `cache` and
`stage` (the folder of the stage that must be at it).
"""

from __future__ import annotations

import io
import os
import signal

import torch
from rich.console import Console

from posttrain.config.load import load_recipe
from posttrain.evaluation import run as evaluation
from posttrain.train import checkpoint, metrics, run, work
from posttrain.train.folder import StageFolder

case = globals()["case"]
stage = case["stage"]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_step(number: int) -> None:
    """Once the metrics of that step are written: past its checkpoint or between two."""
    write = metrics.MetricsLog.write

    def patched(log, step, values):
        write(log, step, values)
        if step == number and log.path.parent.name == stage:
            die()

    metrics.MetricsLog.write = patched


def in_checkpoint() -> None:
    """Half of the state is on the disk."""

    def torn(state, file):
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        if stage in str(file.name):
            die()
        file.write(whole.getvalue()[len(whole.getvalue()) // 2 :])

    save, torch.save = torch.save, torn


def before(owner: object, name: str, *, after: bool = False) -> None:
    """When `owner.name` is about to run (or has just run) for that stage."""
    original = getattr(owner, name)

    def patched(*arguments, **keywords):
        here = stage in repr(arguments) + repr(keywords)
        if here and not after:
            die()
        found = original(*arguments, **keywords)
        if here:
            die()
        return found

    setattr(owner, name, patched)


def in_measurement() -> None:
    """Six problems are answered and not all of them are written: the second of four, at the second step."""
    answered = 0
    original = evaluation._scored

    def patched(problem, completions):
        nonlocal answered
        answered += 1
        if answered == 6:
            die()
        return original(problem, completions)

    evaluation._scored = patched


MOMENTS = {
    "in a measurement": in_measurement,
    "before its line": lambda: before(metrics.MetricsLog, "write"),
    "after step 5": lambda: after_step(5),
    "in a checkpoint": in_checkpoint,
    "rollouts written": lambda: before(work, "write_rollouts", after=True),
    "model saved": lambda: before(checkpoint.Checkpoints, "clear"),
    "evaluated": lambda: before(StageFolder, "finish"),
    "published": lambda: before(run, "write_summary"),
}

if __name__ == "<run_path>":
    os.environ["POSTTRAIN_CACHE"] = case["cache"]
    MOMENTS[case["moment"]]()
    metrics.MetricsLog.__repr__ = lambda self: f"MetricsLog({self.path})"
    checkpoint.Checkpoints.__repr__ = lambda self: f"Checkpoints({self.folder})"
    run.run(load_recipe(case["recipe"], case["overrides"]), console=Console(file=io.StringIO()))
