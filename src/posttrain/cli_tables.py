"""What the command prints as tables; columns of plain text where there is no terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.config.plan import StagePlan, measured, plan
from posttrain.config.recipe import Recipe


def table(console: Console, *columns: str, title: str = "", right: Sequence[str] = ()) -> Table:
    """An empty table with headings; the columns named in `right` hold numbers."""
    grid = Table(
        title=title,
        title_justify="left",
        box=box.ROUNDED if console.is_terminal else None,
        pad_edge=console.is_terminal,
    )
    for name in columns:
        grid.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return grid


def show_plan(recipe: Recipe, console: Console) -> None:
    """What a recipe does, in which order, how large it is at most, and where its files go."""
    grid = Table.grid(padding=(0, 2))
    for name, value in _summary(recipe):
        grid.add_row(Text(name, style="bold"), Text(value))
    console.print(grid)
    right = ("steps", "updates", "tokens sampled", "tokens trained on")
    stages = table(
        console, "stage", "one step", *right, "reads", title="\nStages (tokens: at most)", right=right
    )
    for stage in plan(recipe):
        stages.add_row(stage.folder, stage.batch, *_sizes(stage), stage.reads)
    console.print(stages)
    if found := measured(recipe):
        console.print(Text("\nMeasured while training", style="bold"))
        for folder, sentence in found:
            console.print(Text(f"{folder}: {sentence}"), soft_wrap=True)
    for warning in recipe.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning), soft_wrap=True)


def show_reference(console: Console) -> None:
    """Every key of every table of a recipe, with its type, default and meaning."""
    from posttrain.config.reference import TABLES, keys_of

    for where, part in TABLES.items():
        about = (part.__doc__ or "").strip()
        grid = table(console, "key", "type", "default", "meaning", title=f"\n{where}: {about}")
        for key in keys_of(part):
            grid.add_row(
                Text(key.name, style="bold"), Text(key.type), Text(key.default), Text(key.description)
            )
        console.print(grid)


def show_recipes(rows: Sequence[tuple[str, Path, str]], console: Console) -> None:
    """Names, files and descriptions of recipes."""
    grid = table(console, "recipe", "what it is", "file")
    for name, path, about in rows:
        grid.add_row(Text(name, style="bold"), Text(about), Text(str(path)))
    console.print(grid)


def show_models(console: Console) -> None:
    """The built-in models, with what fetching them costs."""
    from posttrain.model.resolve import BUILTIN, cache_dir

    right = ("parameters", "download", "on disk")
    grid = table(console, "model", *right, "license", "what it is", right=right)
    for name, model in BUILTIN.items():
        sizes = (f"{model.download_megabytes} MB", f"{model.disk_megabytes} MB")
        grid.add_row(
            Text(name, style="bold"), short(model.num_parameters), *sizes, model.license, Text(model.summary)
        )
    console.print(grid)
    console.print(f"kept in {cache_dir()}; folders and hub ids (owner/name) can be named too", soft_wrap=True)


def show_outcome(run: Path, console: Console) -> None:
    """A finished run's scores, what it gained, and where to look next."""
    from posttrain.report.kept import kept_of
    from posttrain.report.outcome import measure
    from posttrain.report.record import read_run
    from posttrain.report.wording import bracket, percent, points

    record = read_run(run)
    outcome = measure(record)
    right = ("held-out score", "95 % interval", "gain over the stage before", "its 95 % interval")
    scores = table(console, "stage", *right, right=right)
    for score in outcome.scores:
        if score.estimate is not None:
            gain = score.gain
            scores.add_row(
                score.label,
                percent(score.estimate.mean),
                bracket(score.estimate.low, score.estimate.high),
                "" if gain is None else points(gain.difference),
                "" if gain is None else bracket(gain.low, gain.high),
            )
    if scores.row_count:
        console.print()
        console.print(scores)
        console.print(f"\n{outcome.sentence}", style="bold", highlight=False)
    for kept in filter(None, map(kept_of, record.stages)):
        console.print(kept.sentence, highlight=False, soft_wrap=True)
    for name, value in (
        ("report", run / "report.html"),
        ("model", run / "model"),
        ("talk to it", f"posttrain chat {run / 'model'}"),
    ):
        console.print(f"{name + ':':12}{value}", soft_wrap=True, highlight=False)


def show_replies(rows: Iterable[Mapping[str, Any]], out: Path | None, console: Console) -> None:
    """Replies as they come: JSON lines in `out` or off a terminal, text on one."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return
    for row in rows:
        if not console.is_terminal:
            console.file.write(json.dumps(row, ensure_ascii=False) + "\n")
            continue
        console.print(Text(f"\n{row['prompt']}", style="bold"))
        console.print(Text(str(row["output"])))
        console.print(Text(f"({row['num_tokens']} tokens, {row['stop_reason']})", style="dim"))


def short(number: int) -> str:
    """1,234 or 134.5M or 1.5B."""
    if number < 1_000_000:
        return f"{number:,}"
    return f"{number / 1e6:.1f}M" if number < 1_000_000_000 else f"{number / 1e9:.1f}B"


def _summary(recipe: Recipe) -> list[tuple[str, str]]:
    exists = (recipe.output_path / "recipe.yaml").exists()
    rows = [
        ("recipe", f"{recipe.name}{f': {recipe.description}' if recipe.description else ''}"),
        ("model", recipe.model + (f" at {recipe.model_revision}" if recipe.model_revision else "")),
        ("chat template", recipe.chat_template or "the model's own"),
        ("seed", str(recipe.seed)),
        ("evaluation", _evaluation(recipe)),
        ("run folder", f"{recipe.output}{' (there already: the run continues)' if exists else ''}"),
    ]
    return rows


def _evaluation(recipe: Recipe) -> str:
    evaluation = recipe.evaluation
    if evaluation is None:
        return "none"
    number = "all" if evaluation.num_problems is None else f"{evaluation.num_problems:,}"
    samples = f" x {evaluation.samples_per_problem}" if evaluation.samples_per_problem > 1 else ""
    times = len(recipe.stages) + 1
    return f"{number} problems{samples} of {evaluation.problems.label}, {times} times"


def _sizes(stage: StagePlan) -> list[str]:
    sizes = (stage.steps, stage.updates, stage.sampled_tokens, stage.trained_tokens)
    return ["by data" if size is None else short(size) for size in sizes]
