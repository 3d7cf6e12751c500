"""SFT, DPO and GRPO: work a second and peak memory, against TRL's trainers."""

from __future__ import annotations

import argparse
from typing import Any

from harness.race import PEERS, Contestant, audition, race, ratio, write
from harness.workload import gsm8k, model_folder

AUTOCAST = {"weights": "float32", "autocast": True}
"""The same precision as ours: float32 weights and moments, bfloat16 products."""
PURE = {"weights": "bfloat16", "autocast": False}
"""Everything bfloat16, weights and moments too: less work and less exact than ours."""
KEEP = {"MALLOC_MMAP_THRESHOLD_": "2147483647", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""What ours does for itself: large freed blocks stay with the process."""

FIGURES = {"sft": "tokens", "dpo": "pairs", "grpo": "completions"}


def workload(stage: str, *, scale: float) -> dict[str, Any]:
    """What one run is: rows of GSM8K, a batch, and for GRPO the group."""
    if stage == "sft":
        return {"rows": gsm8k(max(2, int(32 * scale))), "batch": max(1, int(8 * scale))}
    if stage == "dpo":
        rows = gsm8k(max(2, int(16 * scale)))
        answers = [row["answer"] for row in rows]
        rows = [
            row | {"rejected": other} for row, other in zip(rows, [*answers[1:], answers[0]], strict=True)
        ]
        return {"rows": rows, "batch": max(1, int(8 * scale))}
    return {
        "rows": gsm8k(max(2, int(8 * scale))),
        "samples": max(2, int(8 * scale)),
        "new_tokens": max(4, int(64 * scale)),
    }


def ours(stage: str, work: dict[str, Any]) -> Contestant:
    """This package, as `posttrain run` does it."""
    settings = work | {"stage": stage, "model": model_folder(), "dtype": "auto", "max_tokens": 2048}
    spin = {"GOMP_SPINCOUNT": "10000"}
    return Contestant("posttrain", "train_posttrain.py", settings, "as shipped", environment=spin)


def candidates(stage: str, work: dict[str, Any]) -> list[Contestant]:
    """TRL in each of the settings that are tried for it."""
    rows = len(work["rows"])
    batch = work.get("batch", rows * work.get("samples", 1))
    # of a whole GRPO step the logits alone need tens of gigabytes
    sizes = (batch, batch // 4) if stage != "grpo" else (batch // 4, batch // 8)
    found = []
    for precision, values in {"autocast": AUTOCAST, "bfloat16": PURE}.items():
        for size in dict.fromkeys(max(2, size) for size in sizes):
            part = values | {"micro_batch": size, "accumulate": max(1, batch // size)}
            settings = work | {"stage": stage, "model": model_folder()} | part
            note = f"fused AdamW, no gradient checkpointing, pages kept as ours does; {part}"
            name = f"trl {precision}, micro-batch {size}"
            found.append(Contestant(name, "train_trl.py", settings, note, PEERS, KEEP))
    return found


def measure(stage: str, *, scale: float, runs: int) -> dict[str, Any]:
    """The stage's figures: TRL's settings each once by themselves, then the fastest of them against ours."""
    work, figure = workload(stage, scale=scale), FIGURES[stage]
    best, tried = audition(candidates(stage, work))
    found = race([ours(stage, work), *([best] if best else [])], runs=runs)
    amount = (found["posttrain"].get("median") or {}).get(figure)
    for contestant in found.values():
        contestant["settings"] = {
            k: v for k, v in contestant["settings"].items() if k not in ("rows", "model")
        }
        for run in [*contestant["runs"], *filter(None, [contestant.get("median")])]:
            # the same work, so ours counts the tokens for both
            run[f"{figure}_per_second"] = amount / run["seconds"]
    ratios: dict[str, Any] = {}
    if best and "median" in found[best.name]:
        ratios["speed"] = ratio(found, "posttrain", best.name, f"{figure}_per_second")
        ratios["memory"] = found["posttrain"]["peak_rss_gib"] / found[best.name]["peak_rss_gib"]
    return found | {"tried for trl": tried, "ratios": ratios}


def main() -> None:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--stages", default="sft,dpo,grpo")
    parser.add_argument("--scale", type=float, default=1.0, help="below 1 for a quick look")
    parser.add_argument("--out", default="training")
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    for stage in args.stages.split(","):
        print(stage)
        rows[stage] = measure(stage, scale=args.scale, runs=args.runs)
        print(f"  {rows[stage]['ratios']}")
        write(args.out, rows)  # after each stage: the next may take an hour


if __name__ == "__main__":
    main()
