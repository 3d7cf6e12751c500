"""The verbs that measure: `eval`, with `eval show-prompt` and `eval export`, and `score`."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from posttrain.cli_console import open_console
from posttrain.cli_eval_options import (
    ChatTemplate,
    DataChoice,
    Device,
    Dtype,
    JudgeSpec,
    Limit,
    MaxNewTokens,
    NumProblems,
    Out,
    PresetName,
    Problems,
    SamplesPerProblem,
    Seed,
    Skip,
    SuiteName,
    TaskList,
    Temperature,
    UnsafeExecution,
)
from posttrain.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from posttrain.evaluation.suite import Suite
    from posttrain.evaluation.task import Task

_MEASURE = "model"
_BUILTIN_MODEL = "smollm2-135m-instruct"


class _MeasureUnlessNamed(TyperGroup):
    """`posttrain eval MODEL ...` measures; `posttrain eval show-prompt ...` is a verb of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else [_MEASURE, *args])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == _MEASURE else name), command, rest


class Format(StrEnum):
    """What results can be exported as."""

    LM_EVAL = "lm-eval"
    INSPECT = "inspect"


group = typer.Typer(cls=_MeasureUnlessNamed, add_completion=False)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a built-in model or a hub id.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="A benchmark: gsm8k, mmlu, ifeval, ...")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    app.add_typer(group, name="eval", help="Measure a model on benchmarks, or on problems with verifiers.")
    app.command()(score)


@group.command(
    name=_MEASURE,
    hidden=True,
    epilog="`posttrain eval show-prompt TASK` prints what a model reads; "
    "`posttrain eval export FOLDER` writes results for other tools.",
)
def evaluate(
    model: ModelName,
    suite: SuiteName = None,
    task: TaskList = None,
    skip: Skip = None,
    preset: PresetName = None,
    data: DataChoice = None,
    limit: Limit = None,
    judge: JudgeSpec = None,
    problems: Problems = None,
    num_problems: NumProblems = None,
    samples_per_problem: SamplesPerProblem = None,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    out: Out = None,
    chat_template: ChatTemplate = None,
    device: Device = None,
    dtype: Dtype = None,
    unsafe_execution: UnsafeExecution = False,
) -> None:
    """Measure a model; a run that was stopped goes on. The last line printed is a JSON summary."""
    subject = {"chat_template": chat_template, "device": device, "dtype": dtype}
    of_problems = {
        "num_problems": num_problems,
        "samples_per_problem": samples_per_problem,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
    }
    if _one_of({"--suite": suite, "--task": task, "--problems": problems}) == "--problems":
        of_benchmarks = {"skip": skip, "preset": preset, "limit": limit, "judge": judge, **subject}
        _refuse(of_benchmarks, "goes with --suite or --task, not with --problems")
        _on_problems(
            model,
            str(problems),
            num_problems=num_problems,
            samples_per_problem=samples_per_problem or 1,
            temperature=1.0 if temperature is None else temperature,
            max_new_tokens=max_new_tokens or 256,
            seed=seed,
            out=out or Path("eval") / f"{Path(model).name}.jsonl",
        )
        return
    _refuse(of_problems, "goes with --problems; a benchmark's settings are those of its --preset")
    chosen, tasks = _tasks(suite, task, skip, preset)
    order = {"data": _data(data, *tasks), "suite": chosen, "limit": limit, "judge": judge, "seed": seed}
    order["out"] = out or Path("eval") / Path(model).name / tasks[0].preset
    _allow(unsafe_execution)
    _on_benchmarks(model, tasks, order, {name: value for name, value in subject.items() if value})


@group.command(name="show-prompt")
def show_prompt(
    task: TaskName,
    num: Annotated[int, typer.Option("--n", min=1, help="Documents to show.")] = 1,
    model: Annotated[str, typer.Option(help="Whose chat template and tokens.")] = _BUILTIN_MODEL,
    preset: PresetName = None,
    data: DataChoice = None,
    chat_template: ChatTemplate = None,
) -> None:
    """Print the exact text and the token ids that a model reads."""
    from posttrain.evaluation.registry import find_preset, open_task

    opened = open_task(task, None if preset is None else find_preset(preset))
    folder = _data(data, opened)
    from posttrain.evaluation.show import show_prompts
    from posttrain.evaluation.subject import Subject

    subject = Subject(model, chat_template=chat_template)
    shown = show_prompts(opened, subject.renderer, folder, num=num, context_tokens=subject.context_tokens)
    for line in shown:
        typer.echo(line)


@group.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A results folder of posttrain eval.")],
    to: Annotated[Format, typer.Option(help="Which tool's format.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A file (lm-eval) or a folder of logs (inspect); FOLDER/TO if not given."),
    ] = None,
) -> None:
    """Write results for lm-evaluation-harness's readers or Inspect's viewer; prints the files."""
    from posttrain.evaluation.export import export_results

    for path in export_results(folder, to.value, out):
        typer.echo(path)


def score(
    task: TaskName,
    in_path: Annotated[
        Path, typer.Option("--in", help='.jsonl rows {"id": ..., "output": text or list of texts}.')
    ],
    preset: PresetName = None,
    data: DataChoice = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where each document's score goes, as JSON lines.")
    ] = None,
    judge: JudgeSpec = None,
    unsafe_execution: UnsafeExecution = False,
) -> None:
    """Score outputs that any system produced; the last line printed is a JSON summary in percent."""
    from posttrain.evaluation.registry import find_preset, open_task

    opened = open_task(task, None if preset is None else find_preset(preset))
    if not in_path.is_file():
        raise DataError(f"there is no file {in_path}")
    folder = _data(data, opened, prompts=False)
    from posttrain.evaluation.judges.judge import open_judge
    from posttrain.evaluation.preflight import data_sources
    from posttrain.evaluation.scoring import score_file, summary, write_scored

    _allow(unsafe_execution)
    console = open_console(stderr=True)
    asked = None if judge is None else open_judge(judge)
    scoring = score_file(opened, in_path, folder, judge=asked, console=console)
    for note in (*scoring.result.deviations, *scoring.result.notes):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        write_scored(out, scoring.scored)
    sources = data_sources(opened, folder)
    _print_json(summary(scoring.result) | ({"data_sources": sources} if sources else {}))


def _on_problems(model: str, problems: str, **settings: Any) -> None:
    from posttrain.config.parts import parse_source

    source = parse_source(problems)
    if source.path is not None and not Path(source.path).exists():
        raise DataError(f"there is no file {source.path}")
    from posttrain.evaluation.run import evaluate_model

    _print_json(evaluate_model(model, source, **settings, console=open_console(stderr=True)))


def _on_benchmarks(
    model: str, tasks: tuple[Task, ...], order: dict[str, Any], subject: dict[str, str]
) -> None:
    from posttrain.cli_eval_table import show_results
    from posttrain.evaluation.benchmarks import Order, evaluate_benchmarks, prepare
    from posttrain.evaluation.results import headline
    from posttrain.evaluation.subject import Subject

    console = open_console(stderr=True)
    prepared = prepare(Order(tasks, **order), console)
    results = evaluate_benchmarks(prepared, Subject(model, **subject), console)
    show_results(results, console)
    _print_json(headline(results) | {"out": str(order["out"])})


def _tasks(
    suite: str | None, names: str | None, skip: str | None, preset: str | None
) -> tuple[Suite | None, tuple[Task, ...]]:
    """The suite, if one is asked for, and the tasks to run; RecipeError for a name that does not exist."""
    from posttrain.evaluation.registry import find_name, find_preset, open_task
    from posttrain.evaluation.suite import expand_tasks, find_suite

    found = None if suite is None else find_suite(suite)
    wanted = found.tasks if found else expand_tasks(names or "")
    left_out = {find_name(name)[0] for name in expand_tasks(skip)} if skip else set()
    chosen = None if preset is None else find_preset(preset)
    tasks = tuple(open_task(name, chosen) for name in wanted if find_name(name)[0] not in left_out)
    if not tasks:
        raise RecipeError("--skip leaves no benchmark to run; name fewer")
    if len({task.preset for task in tasks}) > 1:
        raise RecipeError("these benchmarks' names stand for different presets; run them one by one")
    return found, tasks


def _allow(unsafe_execution: bool) -> None:
    if unsafe_execution:
        import os

        from posttrain.rewards.sandbox.program import UNSAFE_VARIABLE

        os.environ[UNSAFE_VARIABLE] = "1"


def _data(choice: str | None, *tasks: Task, prompts: bool = True) -> Path:
    """The folder that the tasks' data are in."""
    from posttrain.evaluation.hub import open_data

    say = partial(open_console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    return open_data(choice, tasks, say, prompts=prompts)


def _one_of(options: Mapping[str, object]) -> str:
    given = [name for name, value in options.items() if value is not None]
    if len(given) == 1:
        return given[0]
    what = f"not {' and '.join(given)} together" if given else "to say what to measure"
    raise RecipeError(f"give one of {', '.join(options)}, {what}")


def _refuse(options: Mapping[str, object], reason: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise RecipeError(f"--{name.replace('_', '-')} {reason}")


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False))
