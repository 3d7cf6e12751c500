"""SFT, DPO and GRPO: work a second and peak memory, against TRL's trainers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.device import arguments, precision
from harness.limit import TRAINED, matrix_limit, share
from harness.race import PEERS, Contestant, audition, race, ratio, write
from harness.workload import gsm8k, model_folder

AUTOCAST = {"weights": "float32", "autocast": True}
"""The same precision as ours: float32 weights and moments, bfloat16 products."""
PURE = {"weights": "bfloat16", "autocast": False}
"""Everything bfloat16, weights and moments too: less work and less exact than ours."""
WIDE = {"weights": "float32", "autocast": False}
PRECISIONS = {
    "bfloat16": {"autocast": AUTOCAST, "bfloat16": PURE},
    # without the hardware bfloat16 products take many times as long
    "float32": {"float32": WIDE},
}
"""What is tried for TRL where ours computes in the precision that is named."""
KEEP = {"MALLOC_MMAP_THRESHOLD_": "2147483647", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""What ours does for itself: large freed blocks stay with the process."""

FIGURES = {"sft": "tokens", "dpo": "pairs", "grpo": "completions"}
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {"sft": (32, 8), "dpo": (16, 8), "grpo": (8, 8, 64)},
    "cuda": {"sft": (512, 128), "dpo": (256, 64), "grpo": (32, 8, 256)},
}
"""Rows and rows of a batch; for GRPO prompts, samples of each, and new tokens."""
MEMORY = {
    "cpu": {"max_tokens": 2048, "cache_gib": 2.0},
    "cuda": {"max_tokens": 16384, "cache_gib": 24.0},
}
"""Ours: tokens of a micro-batch, and the sampler's cache (GiB)."""


def workload(stage: str, *, scale: float, device: str) -> dict[str, Any]:
    """What one run is: rows of GSM8K, a batch, and for GRPO the group."""
    count, size, *new = SIZES[device][stage]
    if stage == "sft":
        return {"rows": gsm8k(max(2, int(count * scale))), "batch": max(1, int(size * scale))}
    if stage == "dpo":
        rows = gsm8k(max(2, int(count * scale)))
        answers = [row["answer"] for row in rows]
        rows = [
            row | {"rejected": other} for row, other in zip(rows, [*answers[1:], answers[0]], strict=True)
        ]
        return {"rows": rows, "batch": max(1, int(size * scale))}
    return {
        "rows": gsm8k(max(2, int(count * scale))),
        "samples": max(2, int(size * scale)),
        "new_tokens": max(4, int(new[0] * scale)),
    }


def ours(stage: str, work: dict[str, Any], device: str, max_tokens: int | None = None) -> Contestant:
    """This package, as `posttrain run` does it; with micro-batches of `max_tokens` if that is given."""
    settings = work | {"stage": stage, "model": model_folder(), "dtype": "auto", "device": device}
    settings |= MEMORY[device] | ({} if max_tokens is None else {"max_tokens": max_tokens})
    note = "as shipped" if max_tokens is None else f"runtime.max_tokens_per_micro_batch={max_tokens}"
    spin = {"GOMP_SPINCOUNT": "10000"}
    return Contestant("posttrain", "train_posttrain.py", settings, note, environment=spin)


def candidates(stage: str, work: dict[str, Any], device: str) -> list[Contestant]:
    """TRL in each of the settings that are tried for it."""
    rows = len(work["rows"])
    batch = work.get("batch", rows * work.get("samples", 1))
    # of a whole GRPO step the logits alone need tens of gigabytes
    sizes = (batch, batch // 4) if stage != "grpo" else (batch // 4, batch // 8)
    found = []
    for name, values in PRECISIONS[precision(device)].items():
        for size in dict.fromkeys(max(2, size) for size in sizes):
            part = values | {"micro_batch": size, "accumulate": max(1, batch // size)}
            settings = work | {"stage": stage, "model": model_folder(), "device": device} | part
            note = f"fused AdamW, no gradient checkpointing, pages kept as ours does; {part}"
            title = f"trl {name}, micro-batch {size}"
            found.append(Contestant(title, "train_trl.py", settings, note, PEERS, KEEP))
    return found


def limit_of(stage: str, device: str) -> dict[str, Any] | None:
    """What matrix products allow, for SFT alone: the others' tokens pass through the model more than once."""
    if stage != "sft":
        return None
    folder = Path(model_folder())
    return matrix_limit(folder, precision(device), device=device, flop_per_parameter=TRAINED)


def measure(
    stage: str, *, scale: float, runs: int, device: str, max_tokens: int | None = None
) -> dict[str, Any]:
    """The stage's figures: TRL's settings each once by themselves, then the fastest of them against ours."""
    work, figure = workload(stage, scale=scale, device=device), FIGURES[stage]
    best, tried = audition(candidates(stage, work, device))
    found = race([ours(stage, work, device, max_tokens), *([best] if best else [])], runs=runs)
    limit = limit_of(stage, device)
    amount = (found["posttrain"].get("median") or {}).get(figure)
    for contestant in found.values():
        contestant["settings"] = {
            k: v for k, v in contestant["settings"].items() if k not in ("rows", "model")
        }
        for run in [*contestant["runs"], *filter(None, [contestant.get("median")])] if amount else []:
            # the same work, so ours counts the tokens for both
            run[f"{figure}_per_second"] = amount / run["seconds"]
            if limit is not None:
                run["share_of_matrix_limit"] = share(run["tokens_per_second"], limit)
    ratios: dict[str, Any] = {}
    if best and amount and "median" in found[best.name]:
        ratios["speed"] = ratio(found, "posttrain", best.name, f"{figure}_per_second")
        for name, peak in (("memory", "peak_rss_gib"), ("gpu_memory", "peak_gpu_gib")):
            if peak in found["posttrain"]:
                ratios[name] = found["posttrain"][peak] / found[best.name][peak]
    return (
        found
        | {"tried for trl": tried, "ratios": ratios}
        | ({} if limit is None else {"matrix_limit": limit})
    )


def main() -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stages", default="sft,dpo,grpo")
    parser.add_argument(
        "--max-tokens", type=int, help="tokens of our micro-batches: fewer take less memory and more time"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="below 1 for a quick look")
    args = arguments(parser, "training")
    rows: dict[str, Any] = {}
    for stage in args.stages.split(","):
        print(stage)
        rows[stage] = measure(
            stage, scale=args.scale, runs=args.runs, device=args.device, max_tokens=args.max_tokens
        )
        print(f"  {rows[stage]['ratios']}")
        write(args.out, rows, device=args.device)  # after each stage: the next may take an hour


if __name__ == "__main__":
    main()
