"""A made-up run folder, written with plain json and pyarrow so that it states the contract by itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

KINDS = ("bullet list", "ends with", "keyword", "no commas", "word count")
STAGES = (
    ("00-base", "base", 0.17),
    ("01-sft", "sft", 0.36),
    ("02-dpo", "dpo", 0.41),
    ("03-grpo", "grpo", 0.58),
)
HOSTILE = '<script>alert("pwned")</script><img src="http://evil.example/x.png" onerror="alert(1)">'


def _lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _heldout(share: float, num_problems: int, hostile: str) -> list[dict]:
    rows = []
    for i in range(num_problems):
        kind = KINDS[i % len(KINDS)]
        # The same draw for every stage: scores are correlated between stages, as real ones are.
        luck = random.Random(i).random() + random.Random(f"{i}{share}").gauss(0, 0.06)
        correct = luck < share + 0.12 * (i % len(KINDS) - 2)
        answer = (
            "Rivers carry stories from the hills to the sea" if correct else "Sure! Here is, well, a text"
        )
        verdict = "correct" if correct else ("unparseable" if share < 0.3 and i % 7 == 0 else "wrong")
        rows.append(
            {
                "problem_id": f"writing/{i:04d}",
                "sample": 0,
                "kind": kind,
                "prompt": f"Write two sentences about rivers. Rule: {kind}. {hostile}",
                "output": f"{answer}. {'Their water is patient. ' * (1 + i % 3)}{hostile}",
                "num_tokens": 24 + i % 40,
                "stop_reason": "stop" if (correct or i % 3) else "length",
                "value": 1.0 if correct else 0.0,
                "verdict": verdict,
                "reason": f"{kind}: {'kept' if correct else 'broken'}",
            }
        )
    return rows


def _common(rng: random.Random, step: int, num_steps: int, peak: float) -> dict:
    return {
        "optim/grad_norm": 1.1 + math.exp(-step / 20) + rng.gauss(0, 0.12),
        "optim/learning_rate": peak * min(1.0, step / 10) * (1 - step / (num_steps + 1)),
        "time/step_seconds": 2.1 + rng.gauss(0, 0.1),
        "throughput/tokens_per_second": 910 + rng.gauss(0, 25),
    }


def _metrics(kind: str, num_steps: int) -> list[dict]:
    rng = random.Random(kind)
    rows = []
    for step in range(1, num_steps + 1):
        t = step / num_steps
        row = {"step": step, **_common(rng, step, num_steps, 2e-5)}
        if kind == "sft":
            row |= {
                "loss/nats_per_token": 0.9 + 1.3 * math.exp(-5 * t) + rng.gauss(0, 0.06),
                "batch/tokens": 4000 + rng.randrange(400),
                "batch/targets": 2100 + rng.randrange(300),
                "batch/rows": 32,
            }
        elif kind == "dpo":
            margin = 1.6 * (1 - math.exp(-3 * t)) + rng.gauss(0, 0.12)
            row |= {
                "loss/nats_per_pair": 0.693 * math.exp(-1.1 * t) + rng.gauss(0, 0.02),
                "rewards/chosen": 0.4 * margin,
                "rewards/rejected": -0.6 * margin,
                "rewards/margins": margin,
                "rewards/accuracies": min(1.0, 0.5 + 0.4 * t + rng.gauss(0, 0.05)),
                "logps/chosen_nats": -62 - 3 * t + rng.gauss(0, 1.5),
                "logps/rejected_nats": -66 - 12 * t + rng.gauss(0, 1.5),
            }
        else:
            row |= {
                "reward/mean": 4.1 + 2.4 * (1 - math.exp(-2.5 * t)) + rng.gauss(0, 0.3),
                "reward/std": 3.2 - t,
                "reward/zero_signal_groups_fraction": min(1.0, 0.25 + 0.2 * t + rng.gauss(0, 0.04)),
                "loss/policy": rng.gauss(0, 0.02),
                "loss/kl_nats": 0.0004 * t,
                "policy/kl_to_reference_nats": max(0.0, 0.045 * t + rng.gauss(0, 0.003)),
                "policy/clip_fraction": abs(rng.gauss(0.004, 0.002)),
                "policy/entropy_nats": 1.9 - 0.7 * t + rng.gauss(0, 0.05),
                "policy/ratio_max_deviation": abs(rng.gauss(0.1, 0.03)),
                "completions/mean_length_tokens": 58 - 14 * t + rng.gauss(0, 2),
                "completions/stop_rate": min(1.0, 0.8 + 0.17 * t + rng.gauss(0, 0.02)),
                "sampling/logprob_difference_mean_nats": abs(rng.gauss(0.004, 0.0005)),
                "sampling/logprob_difference_max_nats": abs(rng.gauss(0.11, 0.03)),
                "rollout/staleness_steps": 1,
                "verifier/error_rate": 0.0,
                "time/generate_seconds": 1.2,
                "time/train_seconds": 0.8,
            }
        rows.append(row)
    return rows


def _rollouts(path: Path, step: int, hostile: str) -> None:
    rng = random.Random(step)
    # Parquet holds UTF-8 only; JSON can smuggle lone surrogates.
    hostile = hostile.encode("utf-8", "replace").decode()
    rows = []
    for i in range(24):
        correct = rng.random() < 0.5
        rows.append(
            {
                "step": step,
                "problem_id": f"writing/train/{i // 4:04d}",
                "sample": i % 4,
                "prompt": f"Write about harbour number {i // 4} without commas. {hostile}",
                "completion": f"The harbour sleeps in a thin fog{'' if correct else ', mostly'}. {hostile}",
                "ids": [5, 6, 7],
                "logprobs": [-0.5, -1.25, -0.1],
                "stop_reason": "stop" if correct else "length",
                "weights_version": step - 1,
                "reward": 10.0 if correct else 0.0,
                "value": 1.0 if correct else 0.0,
                "verdict": "correct" if correct else "wrong",
                "reason": "no comma found" if correct else "1 comma found, 0 allowed",
                "parts": json.dumps({"no commas": 1.0 if correct else 0.0}),
                "advantage": (1.0 if correct else -1.0) + rng.gauss(0, 0.2),
                "verifier": "ifeval",
                "ground_truth": json.dumps({"max": 0}),
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def _manifest(name: str) -> dict:
    return {
        "name": name,
        "recipe_hash": "9f2c" * 16,
        "created": "2025-01-05T09:12:44+00:00",
        "finished": "2025-01-05T09:53:10+00:00",
        "seed": 1,
        "versions": {"python": "3.11.9", "posttrain": "0.1.0", "torch": "2.13.0", "transformers": "5.19.0"},
        "git": {"commit": "c3309841d4e0", "dirty": True},
        "machine": {
            "cpu": "A CPU @ 2.60GHz",
            "cores": 2,
            "ram_gib": 15.6,
            "device": "cpu",
            "dtype": "bfloat16",
        },
        "model": {"name": "smollm2-135m-instruct", "source": "pypi", "sha256": "ab12" * 16},
        "stages": [{"name": name, "kind": kind, "key": "0" * 64} for name, kind, _ in STAGES],
    }


def write_run(root: Path, *, hostile: str = HOSTILE, num_problems: int = 240, num_steps: int = 120) -> Path:
    """A finished run of four stages; completions and names carry `hostile`."""
    _json(root / "manifest.json", _manifest("quickstart"))
    (root / "recipe.yaml").write_text(
        "name: quickstart\nmodel: smollm2-135m-instruct\nseed: 1\nstages:\n"
        "  - sft: {epochs: 2, batch_rows: 32, learning_rate: 2.0e-5}\n"
        "  - dpo: {beta: 0.1}\n  - grpo: {prompts_per_step: 48, samples_per_prompt: 16, steps: 120}\n"
    )
    for index, (name, kind, share) in enumerate(STAGES):
        stage = root / "stages" / name
        _lines(stage / "eval" / "heldout.jsonl", _heldout(share, num_problems, hostile))
        _json(
            stage / "done.json",
            {
                "key": "0" * 64,
                "seconds": (41.0, 310.0, 402.0, 1671.0)[index],
                "peak_rss_gib": (1.4, 2.9, 3.1, 3.4)[index],
                "warnings": ["12 rows were longer than 512 tokens and were dropped"] if index == 1 else [],
            },
        )
        if kind == "base":
            continue
        _lines(stage / "metrics.jsonl", _metrics(kind, num_steps))
        _json(
            stage / "data.json",
            {
                "rows": 1920 - 300 * index,
                "tokens": 240_512 - 20_000 * index,
                "targets": 130_100 - 9_000 * index,
                "dropped": {"longer than 512 tokens": 12, "no assistant turn": 1} if kind == "sft" else {},
                "examples": [f"row 17: {hostile}"] if kind == "sft" else [],
                "sources": [
                    {
                        "name": "writing",
                        "rows_read": 2000,
                        "rows_used": 1907,
                        "sha256": "77aa" * 16,
                        "licence": "Apache-2.0",
                    }
                ],
                "notes": ["the writing prompts are generated from a seed"] if kind == "sft" else [],
            },
        )
    _rollouts(root / "stages" / "01-sft" / "rollouts" / "rejection.parquet", 0, hostile)
    _rollouts(root / "stages" / "03-grpo" / "rollouts" / "step_000060.parquet", 60, hostile)
    _rollouts(root / "stages" / "03-grpo" / "rollouts" / "step_000120.parquet", 120, hostile)
    return root


def write_measurements(run: Path, *, hostile: str = "", every: int = 10, num_steps: int = 120) -> dict:
    """The run's GRPO stage as one that was measured while it trained; returns its kept.json. Step 80 is best."""
    stage = run / "stages" / "03-grpo"
    rng = random.Random(7)
    rows = []
    for step in range(0, num_steps + 1, every):
        score = (
            0.38 + 0.2 * math.exp(-(((step - 80) / 60) ** 2)) + (0 if step == 80 else rng.uniform(-0.03, 0))
        )
        error = math.sqrt(score * (1 - score) / 96)
        rows.append(
            {
                "step": step,
                "benchmark/gsm8k_percent": 21 + 9 * step / num_steps + rng.gauss(0, 1),
                "benchmark/gsm8k_stderr": 2.1,
                "benchmark/gsm8k_documents": 400,
                "benchmark/ifeval_percent": 48 + 6 * math.sin(step / 40),
                "benchmark/ifeval_stderr": 3.4,
                "eval/score": score,
                "eval/score_stderr": error,
                "eval/score_low": score - 1.96 * error,
                "eval/score_high": score + 1.96 * error,
                "eval/problems": 96,
                "time/measure_seconds": 14.0,
            }
        )
    _lines(stage / "measured.jsonl", rows)
    first = stage / "eval" / "step_000000"
    _json(first / "gsm8k" / "result.json", {"title": f"GSM8K (8-shot, CoT){hostile}"})
    candidates = [
        {"step": row["step"], "score": row["eval/score"], "stderr": row["eval/score_stderr"]}
        for row in rows[1:]
    ]
    best = next(one for one in candidates if one["step"] == 80)
    kept = {
        "keep": "best",
        "step": 80,
        "num_steps": num_steps,
        "score": best["score"],
        "candidates": candidates,
    }
    _json(stage / "kept.json", kept)
    recipe = run / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace(
            "steps: 120}", "steps: 120}\n    measure: {every_steps: 10, at_start: true, keep: best}"
        )
    )
    return kept


@pytest.fixture
def add_measurements() -> Callable[..., dict]:
    """`add_measurements(run, hostile=...)` makes the run's GRPO stage one that was measured."""
    return write_measurements


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(hostile=..., num_problems=..., num_steps=...)` writes a run and returns its folder."""

    def make(**options: object) -> Path:
        return write_run(tmp_path / "run", **options)

    return make
