"""How cost grows: training with the length of rows, the engine with the number of requests, DPO data with rows."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from harness.device import arguments, precision
from harness.machine import synchronise
from harness.race import Contestant, race, write
from harness.workload import chat_prompts, gsm8k, model_folder

TOKENS = {"cpu": 2048, "cuda": 16384}
"""Of a pass over rows of each length."""
CACHE_GIB = {"cpu": 4.0, "cuda": 24.0}


def training(lengths: list[int], *, tokens: int, runs: int, device: str) -> list[dict[str, Any]]:
    """Forward and backward tokens a second on `tokens` tokens in rows of each length."""
    from posttrain.data.pack import collate
    from posttrain.model.load import load_model, pick_dtype
    from posttrain.records import Row
    from posttrain.runtime.local import LocalLearner

    where = torch.device(device)
    module = load_model(Path(model_folder()), dtype=torch.float32, device=where)
    learner = LocalLearner(module, compute_dtype=pick_dtype("auto", where))
    stream = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        rows = [
            Row(
                str(i),
                tuple(torch.randint(0, module.config.vocab_size, (length,), generator=stream).tolist()),
                (True,) * length,
            )
            for i in range(max(1, tokens // length))
        ]
        batch = collate(rows)
        seconds = []
        for _ in range(runs + 1):
            synchronise(device)
            started = time.perf_counter()
            learner.forward_backward(batch, lambda logprobs, _: (-logprobs.mean(), {}))
            synchronise(device)
            seconds.append(time.perf_counter() - started)
        best = sorted(seconds[1:])[len(seconds[1:]) // 2]
        found.append({"length": length, "seconds": best, "tokens_per_second": len(batch.ids) / best})
        print(f"  {found[-1]}", flush=True)
    return found


def engine(counts: list[int], *, new_tokens: int, runs: int, device: str) -> list[dict[str, Any]]:
    """Generated tokens a second with each number of requests."""
    found = []
    for count in counts:
        prompts = (chat_prompts(min(count, 64)) * (count // 64 + 1))[:count]
        settings = {
            "model": model_folder(),
            "device": device,
            "dtype": precision(device),
            "cache_gib": CACHE_GIB[device],
            "new_tokens": new_tokens,
            "prompts": prompts,
            "samples": 1,
        }
        one = Contestant(
            "posttrain", "generate_posttrain.py", settings, "", environment={"GOMP_SPINCOUNT": "10000"}
        )
        median = race([one], runs=runs)["posttrain"]["median"]
        found.append(
            {"concurrent": count, **median, "tokens_per_second": median["tokens"] / median["seconds"]}
        )
        print(f"  {found[-1]}", flush=True)
    return found


def dpo_data(counts: list[int]) -> list[dict[str, Any]]:
    """Seconds to render, tokenise, batch and collate each number of preference pairs, all of them different."""
    from posttrain.data.pack import collate, micro_batches
    from posttrain.data.pairs import pair_rows
    from posttrain.data.render import Renderer
    from posttrain.model.load import load_tokenizer
    from posttrain.records import Message, Preference

    renderer = Renderer(load_tokenizer(Path(model_folder())))
    rows = gsm8k(1000)
    found = []
    for count in counts:
        preferences = []
        for number in range(count):
            row, other = rows[number % len(rows)], rows[(number + 1) % len(rows)]
            ask = Message("user", f"{number}. {row['question']}")
            preferences.append(
                Preference(
                    str(number),
                    (ask, Message("assistant", row["answer"])),
                    (ask, Message("assistant", other["answer"])),
                )
            )
        started = time.perf_counter()
        pairs, _ = pair_rows(preferences, renderer, max_tokens=2048)
        tokenised = time.perf_counter()
        for start in range(0, len(pairs), 128):
            step = [row for pair in pairs[start : start + 128] for row in pair]
            for group in micro_batches(step, 2048, together=2):
                collate([step[i] for i in group])
        ended = time.perf_counter()
        found.append(
            {
                "pairs": count,
                "tokenise_seconds": tokenised - started,
                "batch_seconds": ended - tokenised,
                "pairs_per_second": count / (ended - started),
            }
        )
        print(f"  {found[-1]}", flush=True)
    return found


def main() -> None:
    """Measure the three curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--lengths", default="256,512,1024,2048")
    parser.add_argument("--tokens", type=int, help=f"of a training pass; if not given {TOKENS}")
    parser.add_argument("--counts", default="1,4,16,64,256")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--pairs", default="1000,10000,100000")
    args = arguments(parser, "growth")
    tokens, on = args.tokens or TOKENS[args.device], {"runs": args.runs, "device": args.device}

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    print("training")
    rows: dict[str, Any] = {"training": training(numbers(args.lengths), tokens=tokens, **on)}
    print("engine")
    rows["engine"] = engine(numbers(args.counts), new_tokens=args.new_tokens, **on)
    print("dpo data")
    rows["dpo_data"] = dpo_data(numbers(args.pairs))
    write(args.out, rows, device=args.device)


if __name__ == "__main__":
    main()
