"""The options of `eval` and `score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_BENCHMARKS = "On benchmarks"
_PROBLEMS = "On problems with verifiers"

SuiteName = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="tulu3, olmo2, tulu3-405b, no-judge or a .yaml file.",
        show_default=False,
        rich_help_panel=_BENCHMARKS,
    ),
]
TaskList = Annotated[
    str | None,
    typer.Option("--task", help="Benchmarks, such as gsm8k,ifeval.", rich_help_panel=_BENCHMARKS),
]
Skip = Annotated[
    str | None,
    typer.Option("--skip", help="Benchmarks of the suite to leave out.", rich_help_panel=_BENCHMARKS),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset", help="tulu3-2024-11 (if not given) or tulu31-2025-02.", rich_help_panel=_BENCHMARKS
    ),
]
DataChoice = Annotated[
    str | None,
    typer.Option(
        "--data",
        envvar="POSTTRAIN_DATA",
        help="The folder of benchmark data; hub, if not given; or hub:FOLDER, FOLDER for what is on no hub.",
        rich_help_panel=_BENCHMARKS,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="Documents of each benchmark, spread evenly; the results are marked.",
        rich_help_panel=_BENCHMARKS,
    ),
]
JudgeSpec = Annotated[
    str | None,
    typer.Option(
        "--judge", help="https://HOST/v1#MODEL, local:MODEL or stored:FILE.", rich_help_panel=_BENCHMARKS
    ),
]
Problems = Annotated[
    str | None,
    typer.Option(
        "--problems",
        help="builtin:writing/heldout, hub:OWNER/NAME, or a file of problems.",
        rich_help_panel=_PROBLEMS,
    ),
]
NumProblems = Annotated[
    int | None,
    typer.Option("--num-problems", min=1, help="Problems used; all if not given.", rich_help_panel=_PROBLEMS),
]
SamplesPerProblem = Annotated[
    int | None,
    typer.Option(
        "--samples-per-problem",
        min=1,
        help="Completions per prompt; 1 if not given.",
        rich_help_panel=_PROBLEMS,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        min=0,
        help="Divisor of the logits; 0 is greedy, 1 if not given.",
        rich_help_panel=_PROBLEMS,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        help="Most tokens of one completion; 256 if not given.",
        rich_help_panel=_PROBLEMS,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the samples.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Results folder, eval/MODEL/PRESET if not given; of --problems the samples, eval/MODEL.jsonl.",
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        help="tulu, olmo or a .jinja file; the model's own if not given.",
        rich_help_panel=_BENCHMARKS,
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu or cuda.", rich_help_panel=_BENCHMARKS)
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="auto, bfloat16 or float32.", rich_help_panel=_BENCHMARKS)
]
UnsafeExecution = Annotated[
    bool,
    typer.Option(
        "--unsafe-execution",
        help="Run generated programs even where nothing contains them.",
        rich_help_panel=_BENCHMARKS,
    ),
]
