"""The `posttrain` command: one verb per thing to do. Heavy libraries are imported inside the verbs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain import cli_compare, cli_data, cli_eval, cli_merge, cli_plan, cli_rank, cli_recipe
from posttrain.cli_console import open_console as _console
from posttrain.errors import DataError, RecipeError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.config.recipe import Recipe

app = typer.Typer(
    help="Turn a language model into a better one and prove it: SFT, DPO and RL with verifiable rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="Built-in models: list, path, fetch.", no_args_is_help=True)
app.add_typer(models, name="models")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as stages.2.grpo.steps=40."),
]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a built-in model or a hub id.")]
Samples = Annotated[int, typer.Option(min=1, help="Completions per prompt.")]
Temperature = Annotated[float, typer.Option(min=0, help="Divisor of the logits; 0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Probability mass that is sampled from.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of one completion.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the samples.")]
System = Annotated[str | None, typer.Option(help="System message.")]

WRITE_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one.")],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Run folder, in place of the recipe's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Run a recipe, or continue it where it was stopped."""
    loaded, console = _load(recipe, overrides, output), _console()
    _refuse_missing_files(loaded)
    if dry_run:
        _show_plan(loaded, console)
        return
    from posttrain.train.run import run as run_recipe

    folder = run_recipe(loaded, console=console)
    from posttrain.cli_tables import show_outcome

    show_outcome(folder, console)


@app.command()
def check(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one.")
    ] = None,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every key a recipe can have.")] = False,
) -> None:
    """Check a recipe without loading anything, and show what it amounts to."""
    console = _console()
    if explain:
        from posttrain.cli_tables import show_reference

        show_reference(console)
    if recipe is not None:
        loaded = _load(recipe, overrides)
        _refuse_missing_files(loaded)
        _show_plan(loaded, console)
    elif not explain:
        raise RecipeError("give a recipe to check, or --explain; `posttrain recipes` lists those there are")


@app.command()
def recipes() -> None:
    """List the recipes that can be run by name."""
    from posttrain.cli_tables import show_recipes
    from posttrain.config.load import recipe_descriptions

    show_recipes(recipe_descriptions(), _console())


@app.command()
def generate(
    model: ModelName,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="User messages.")] = None,
    in_path: Annotated[
        Path | None, typer.Option("--in", help="Prompts: one a line, or .jsonl rows with a `prompt`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write JSON lines here.")] = None,
    system: System = None,
    num_samples: Samples = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: NewTokens = 256,
    seed: SeedOption = 0,
    chat_template: Annotated[
        str | None, typer.Option(help="tulu, olmo or a .jinja file; the model's own if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Answer prompts: text on a terminal, JSON lines elsewhere."""
    from posttrain.cli_prompts import read_prompts

    wanted = read_prompts(prompts or (), in_path)
    from posttrain.serve.generate import generate as replies

    rows = replies(
        model,
        wanted,
        system=system,
        num_samples=num_samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        chat_template=chat_template,
        device=device,
    )
    from posttrain.cli_tables import show_replies

    show_replies(rows, out, _console())


@app.command()
def chat(
    model: ModelName,
    system: System = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    max_new_tokens: NewTokens = 512,
    seed: SeedOption = 0,
) -> None:
    """Talk with a model in the terminal."""
    from posttrain.serve.chat import chat as talk

    talk(
        model,
        system=system,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        console=_console(),
    )


@app.command()
def verify(
    name: Annotated[
        str, typer.Argument(metavar="VERIFIER", help="A verifier: gsm8k, math, ifeval, string, format, ...")
    ],
    in_path: Annotated[
        Path, typer.Option("--in", help=".jsonl rows with a `completion` and a `ground_truth`.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the rows go, each with its score.")],
) -> None:
    """Score completions in a file; the last line printed is a JSON summary."""
    _refuse_missing(in_path)
    from posttrain.rewards.verify_file import verify_file

    _print_json(verify_file(name, in_path, out))


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write a run's report.html again and print where it is."""
    if not run_folder.is_dir():
        raise RecipeError(f"there is no run folder {run_folder}")
    from posttrain.report.run_page import write_report

    typer.echo(write_report(run_folder))


cli_eval.register(app)
cli_compare.register(app)
cli_rank.register(app)
cli_data.register(app)
cli_recipe.register(app)
cli_merge.register(app)
cli_plan.register(app)


@models.command(name="list")
def list_models() -> None:
    """List the models that come by name."""
    from posttrain.cli_tables import show_models

    show_models(_console())


@models.command()
def path(model: ModelName) -> None:
    """Print a model's folder, fetching it first if need be."""
    from posttrain.model.resolve import resolve

    typer.echo(resolve(model, console=_console(stderr=True)))


@models.command()
def fetch(names: Annotated[list[str], typer.Argument(metavar="MODEL")]) -> None:
    """Fetch models now, so that later commands need no network."""
    from posttrain.model.resolve import resolve

    console = _console()
    for name in names:
        console.print(f"{name}: {resolve(name, console=console)}", soft_wrap=True, highlight=False)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Its data and tokens are shown.")
    ] = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="A model, in place of a recipe's.")] = None,
    data: Annotated[str | None, typer.Option(help="Conversations, in place of a recipe's.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="tulu, olmo or a .jinja file.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 2,
) -> None:
    """Show the machine, and with a recipe or a model and data what the loss will see."""
    if data is not None and model is None:
        raise RecipeError("--data needs --model: a file has no tokens without a tokenizer")
    if recipe is not None and (model is not None or data is not None):
        raise RecipeError("give either a recipe, or --model and --data")
    from posttrain.doctor import show_environment, show_model, show_recipe

    console = _console()
    show_environment(console)
    if recipe is not None:
        show_recipe(_load(recipe, overrides), num_rows=rows, console=console)
    elif model is not None:
        show_model(model, data, chat_template=chat_template, num_rows=rows, console=console)


@app.command()
def version() -> None:
    """Print the version."""
    import platform

    from posttrain import __version__

    typer.echo(f"posttrain {__version__} (Python {platform.python_version()})")


def main() -> None:
    """Run the command; a user's mistake becomes one line and an exit code, a bug keeps its traceback."""
    # read when torch loads: by default idle threads spin, which costs a tenfold when cores are shared
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(prog_name="posttrain")
    except UserError as error:
        _complain(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _stopped()
        sys.exit(130)
    except SystemExit as end:
        # Typer turns Ctrl-C into this code.
        if end.code == 130:
            _stopped()
        raise
    except OSError as error:
        if error.errno not in WRITE_FAILURES:
            raise
        where = f" {error.filename}" if error.filename else ""
        again = (
            "free some space and run the same command again"
            if error.errno in WRITE_FAILURES[:2]
            else "check its permissions"
        )
        _complain(f"error: cannot use{where}: {error.strerror}; {again}")
        sys.exit(1)


def _load(recipe: str, overrides: list[str] | None, output: Path | None = None) -> Recipe:
    import json

    from posttrain.config.load import find_recipe, load_recipe

    changes = list(overrides or ())
    if output is not None:
        changes.append(f"output={json.dumps(str(output))}")
    return load_recipe(find_recipe(recipe), changes)


def _refuse_missing_files(recipe: Recipe) -> None:
    from posttrain.config.plan import missing_files

    missing = missing_files(recipe)
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}{others}")


def _show_plan(recipe: Recipe, console: Console) -> None:
    from posttrain.cli_tables import show_plan

    show_plan(recipe, console)


def _refuse_missing(path: Path) -> None:
    if not path.exists():
        raise DataError(f"there is no file {path}")


def _print_json(summary: object) -> None:
    import json

    typer.echo(json.dumps(summary, ensure_ascii=False))


def _stopped() -> None:
    again = "; run the same command again to continue" if sys.argv[1:2] == ["run"] else ""
    _complain(f"stopped{again}")


def _complain(line: str) -> None:
    from rich.text import Text

    head, colon, rest = line.partition(": ")
    text = Text.assemble((head + colon, "bold red" if colon else "bold"), rest)
    _console(stderr=True).print(text, soft_wrap=True)
