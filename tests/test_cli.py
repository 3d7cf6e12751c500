"""The command: exit codes, one sentence for a mistake, and nothing heavy before it is needed."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain import __version__
from posttrain.cli import main
from posttrain.errors import CheckpointError, DataError, ModelError, RecipeError

RECIPE = """\
name: trial
model: some/model
stages:
  - sft:
      data: [{path: rows.jsonl, amount: 40}]
      batch_rows: 10
      epochs: 3
"""
HEAVY = ("torch", "transformers", "datasets", "numpy", "matplotlib", "sympy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "trial.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `posttrain WORDS`."""
    monkeypatch.setattr(sys, "argv", ["posttrain", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    """Put a module with these functions in the place of a heavy one."""
    fake = types.ModuleType(module)
    vars(fake).update(functions)
    monkeypatch.setitem(sys.modules, module, fake)


@pytest.mark.parametrize(
    "words", [["--help"], ["check", "trial.yaml"], ["recipes"], ["run", "trial.yaml", "--dry-run"]]
)
def test_light_verbs_load_no_heavy_library(folder: Path, words: list[str]) -> None:
    """A fresh interpreter: whatever `check` and `--help` import would be in sys.modules at its end."""
    program = (
        "import sys, posttrain.cli\n"
        f"sys.argv = ['posttrain', *{words!r}]\n"
        "try:\n    posttrain.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_fresh_process_prints_one_line_for_a_mistake(folder: Path) -> None:
    words = [sys.executable, "-m", "posttrain", "check", "trial.yaml", "stages.0.sft.epochs=0"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: override 'stages.0.sft.epochs=0': stages.0.sft.epochs is 0; it must be at least 1\n"
    )


def test_check_shows_sizes_and_where_files_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 rows in batches of 10 are 4 steps an epoch, 12 in three; 40 x 3 x 4,096 tokens = 491,520."""
    assert call(monkeypatch, "check", "trial.yaml") == 0
    lines = capsys.readouterr().out.splitlines()
    [stage] = [line for line in lines if line.startswith("01-sft")]
    assert stage.split("  ")[0] == "01-sft"
    assert [word for word in stage.split() if word.replace(",", "").isdigit()] == [
        "10",
        "3",
        "12",
        "12",
        "0",
        "491,520",
    ]
    assert any(line.split() == ["run", "folder", "runs/trial"] for line in lines)
    assert not list(folder.glob("runs"))


def test_check_refuses_a_file_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "rows.jsonl").unlink()
    assert call(monkeypatch, "check", "trial.yaml") == 3
    assert capsys.readouterr().err == "error: stages.0.sft.data.0.path is rows.jsonl, which does not exist\n"


def test_check_explains_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", "--explain") == 0
    out = capsys.readouterr().out
    assert "Completions sampled for each prompt" in out
    assert "no_stop_score" in out


def test_check_without_a_recipe_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check") == 2
    assert capsys.readouterr().err.startswith("error: give a recipe to check")


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "check",
        "recipes",
        "generate",
        "chat",
        "verify",
        "eval",
        "report",
        "doctor",
        "models",
        "version",
    ],
)
def test_every_verb_has_help(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, verb, "--help") == 0
    assert "Usage: posttrain" in capsys.readouterr().out


def test_an_unknown_verb_or_option_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "trian") == 2
    assert call(monkeypatch, "check", "--no-such-option") == 2


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "version") == 0
    assert capsys.readouterr().out.startswith(f"posttrain {__version__} (Python 3.")


def test_run_hands_over_the_recipe_with_its_overrides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def run(recipe: Any, *, console: Any) -> Path:
        seen.append(recipe)
        (Path(recipe.output) / "stages").mkdir(parents=True)
        return Path(recipe.output)

    stand_in(monkeypatch, "posttrain.train.run", run=run)
    words = ["run", "trial.yaml", "seed=7", "stages.-1.sft.epochs=1", "--output", "runs/null"]
    assert call(monkeypatch, *words) == 0
    [recipe] = seen
    assert (recipe.seed, recipe.stages[0].sft.epochs, recipe.output) == (7, 1, "runs/null")
    assert "talk to it: posttrain chat runs/null/model\n" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["null", "1e-6", "a: b", 'quo"te', "back\\slash"])
def test_an_output_folder_is_text_whatever_it_looks_like(
    folder: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    seen: list[str] = []

    def run(recipe: Any, *, console: Any) -> Path:
        seen.append(recipe.output)
        (Path(recipe.output) / "stages").mkdir(parents=True)
        return Path(recipe.output)

    stand_in(monkeypatch, "posttrain.train.run", run=run)
    assert call(monkeypatch, "run", "trial.yaml", "--output", output) == 0
    assert seen == [output]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RecipeError("no such thing"), 2, "error: no such thing"),
        (DataError("rows.jsonl:3: no messages"), 3, "error: rows.jsonl:3: no messages"),
        (ModelError("no tokenizer"), 4, "error: no tokenizer"),
        (CheckpointError("another recipe's folder"), 5, "error: another recipe's folder"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to continue"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/trial/x"),
            1,
            "error: cannot use runs/trial/x: No space left on device; free some space and run the same "
            "command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/trial"),
            1,
            "error: cannot use runs/trial: Permission denied; check its permissions",
        ),
    ],
)
def test_what_stops_a_run_is_one_line_and_an_exit_code(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def run(recipe: Any, *, console: Any) -> Path:
        raise error

    stand_in(monkeypatch, "posttrain.train.run", run=run)
    assert call(monkeypatch, "run", "trial.yaml") == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), OSError(errno.ECONNRESET, "reset"), KeyError("x")]
)
def test_a_bug_keeps_its_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(recipe: Any, *, console: Any) -> Path:
        raise error

    stand_in(monkeypatch, "posttrain.train.run", run=run)
    monkeypatch.setattr(sys, "argv", ["posttrain", "run", "trial.yaml"])
    with pytest.raises(type(error)) as caught:
        main()
    assert caught.value is error


def test_a_long_error_is_not_folded_off_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "word " * 100

    def run(recipe: Any, *, console: Any) -> Path:
        raise DataError(f"[bold]{words}[/nothing]")

    stand_in(monkeypatch, "posttrain.train.run", run=run)
    assert call(monkeypatch, "run", "trial.yaml") == 3
    assert capsys.readouterr().err == f"error: [bold]{words}[/nothing]\n"


def replies(model: str, prompts: Any, **keys: Any) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        for sample in range(keys["num_samples"]):
            yield {"prompt": prompt, "sample": sample, "output": "é", "stop_reason": "stop", "num_tokens": 1}


@pytest.mark.parametrize("to_file", [True, False])
def test_generate_writes_one_json_line_for_each_sample(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to_file: bool
) -> None:
    stand_in(monkeypatch, "posttrain.serve.generate", generate=replies)
    rows = [{"prompt": "one\u2028line"}, {"prompt": "two", "other": 1}]
    Path("in.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", encoding="utf-8"
    )
    words = ["generate", "m", "--in", "in.jsonl", "--num-samples", "2"]
    assert call(monkeypatch, *words, *(["--out", "deep/out.jsonl"] if to_file else [])) == 0
    text = Path("deep/out.jsonl").read_text(encoding="utf-8") if to_file else capsys.readouterr().out
    written = [json.loads(line) for line in text.rstrip("\n").split("\n")]
    assert [(row["prompt"], row["sample"]) for row in written] == [
        ("one\u2028line", 0),
        ("one\u2028line", 1),
        ("two", 0),
        ("two", 1),
    ]


@pytest.mark.parametrize(
    ("text", "words", "code", "sentence"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}\n', [], 3, "in.jsonl:2: a row needs a `prompt` that is text"),
        ('{"prompt": "a"}\n{oops\n', [], 3, "in.jsonl:2: not JSON"),
        ("\n\n", [], 3, "there are no prompts in in.jsonl"),
        ("x", ["and a prompt"], 2, "give prompts or --in, not both"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    words: list[str],
    code: int,
    sentence: str,
) -> None:
    stand_in(monkeypatch, "posttrain.serve.generate", generate=replies)
    Path("in.jsonl").write_text(text)
    assert call(monkeypatch, "generate", "m", *words, "--in", "in.jsonl") == code
    assert sentence in capsys.readouterr().err


def test_verify_prints_its_summary_as_the_last_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def verify_file(name: str, in_path: Path, out_path: Path) -> dict[str, Any]:
        seen.append((name, in_path, out_path))
        return {"n": 3, "mean": 0.5}

    stand_in(monkeypatch, "posttrain.rewards.verify_file", verify_file=verify_file)
    assert call(monkeypatch, "verify", "gsm8k", "--in", "rows.jsonl", "--out", "scored.jsonl") == 0
    assert seen == [("gsm8k", Path("rows.jsonl"), Path("scored.jsonl"))]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"n": 3, "mean": 0.5}
    assert call(monkeypatch, "verify", "gsm8k", "--in", "absent.jsonl", "--out", "scored.jsonl") == 3


def test_eval_hands_over_the_source_and_prints_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def evaluate_model(model: str, source: Any, **keys: Any) -> dict[str, Any]:
        seen.update(keys, model=model, source=source.label)
        return {"mean": 0.25}

    stand_in(monkeypatch, "posttrain.evaluation.run", evaluate_model=evaluate_model)
    words = [
        "eval",
        "models/mine",
        "--problems",
        "builtin:writing/heldout",
        "--num-problems",
        "5",
        "--temperature",
        "0",
    ]
    assert call(monkeypatch, *words) == 0
    assert json.loads(capsys.readouterr().out) == {"mean": 0.25}
    assert (seen["model"], seen["source"], seen["num_problems"]) == (
        "models/mine",
        "builtin:writing/heldout",
        5,
    )
    assert (seen["temperature"], seen["out"]) == (0.0, Path("eval/mine.jsonl"))
    assert call(monkeypatch, "eval", "m", "--problems", "builtin:wriding/heldout") == 2
    assert call(monkeypatch, "eval", "m", "--problems", "absent.jsonl") == 3
    assert call(monkeypatch, "eval", "m", "--problems", "rows.jsonl", "--temperature", "-1") == 2


def test_report_needs_a_run_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "report", "absent") == 2


def test_models_are_listed_with_their_size_and_license(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "models", "list") == 0
    out = capsys.readouterr().out
    assert "smollm2-135m-instruct" in out
    assert "134.5M" in out
    assert "Apache-2.0" in out


def test_recipes_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "recipes") == 0
    assert "quickstart" in capsys.readouterr().out


def test_doctor_refuses_what_does_not_go_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "doctor", "--data", "rows.jsonl") == 2
    assert call(monkeypatch, "doctor", "quickstart", "--model", "m") == 2
    assert capsys.readouterr().err.count("error: ") == 2
