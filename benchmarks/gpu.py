"""Generation, training and growth on a CUDA device, for a 135M and a 1B model, and whether the bars are met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import random_model
from harness.device import require
from harness.race import RESULTS
from harness.workload import MODEL

MODELS = (MODEL, random_model.NAME)
SCRIPTS: dict[str, tuple[str, ...]] = {"generation": (), "training": ("--stages", "sft,grpo"), "growth": ()}
SFT_SHARE = 0.45
"""Of the measured bfloat16 matrix rate, by SFT."""
TIMES_GENERATE = 5.0
"""Times the tokens a second of `transformers.generate`, with 256 prompts at once."""


def bars(model: str) -> Iterator[str]:
    """A sentence for each bar, from the stored results of `model`."""

    def found(script: str, *path: str) -> float | None:
        content: Any = json.loads((RESULTS / f"{script}-cuda-{model}.json").read_text(encoding="utf-8"))
        for key in ("rows", *path):
            content = content.get(key) or {}
        return content or None

    share = found("training", "sft", "posttrain", "median", "share_of_matrix_limit")
    times = found("generation", "two_fifty_six", "ratios", "posttrain/transformers")
    yield _verdict(f"{model}: SFT at {{}} of the bfloat16 matrix rate", share, SFT_SHARE)
    yield _verdict(f"{model}: 256 at once, {{}} times transformers.generate", times, TIMES_GENERATE)


def _verdict(sentence: str, value: float | None, bar: float) -> str:
    if value is None:
        return f"{sentence.format('?')}: not measured (bar {bar:g})"
    return f"{sentence.format(f'{value:.2f}')}: {'met' if value >= bar else 'MISSED'} (bar {bar:g})"


def main() -> None:
    """Run every script for every model; each stores its results as it goes."""
    require("cuda")
    for model in MODELS:
        for script, options in SCRIPTS.items():
            print(f"benchmarks/{script}.py, {model}", flush=True)
            command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), "--device", "cuda"]
            subprocess.run(
                [*command, *options], env=os.environ | {"POSTTRAIN_BENCH_MODEL": model}, check=True
            )
    for model in MODELS:
        print("\n".join(bars(model)))


if __name__ == "__main__":
    main()
