"""Where a measurement runs: the scripts' --device, and the name of their results."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness.workload import MODEL


def arguments(parser: argparse.ArgumentParser, script: str) -> argparse.Namespace:
    """The parsed command line with `device` and `out`; ends the program where there is no such device."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where every contestant's model lives"
    )
    parser.add_argument(
        "--out", help=f"name of the results file; if not given {script}, or {script}-cuda-MODEL on a GPU"
    )
    args = parser.parse_args()
    require(args.device)
    args.out = args.out or result_name(script, args.device)
    return args


def require(device: str) -> None:
    """End the program with one sentence when `device` is a GPU and torch sees none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; run this on a machine with one, with a CUDA build of torch")


def result_name(script: str, device: str) -> str:
    """The stem of the results file of `script` for the model that is measured."""
    model = Path(os.environ.get("POSTTRAIN_BENCH_MODEL", MODEL)).name
    return script if device == "cpu" else f"{script}-{device}-{model}"


def precision(device: str) -> str:
    """The compute precision of every contestant: bfloat16 where `device` multiplies it, else float32."""
    import torch

    from posttrain.model.load import pick_dtype

    return str(pick_dtype("auto", torch.device(device))).removeprefix("torch.")
