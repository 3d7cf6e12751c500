"""Tokens a second of the built-in engine, vLLM's CPU build and transformers' `generate`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from harness.race import PEERS, Contestant, audition, race, ratio, write
from harness.workload import chat_prompts, model_folder

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_LOGGING_LEVEL": "ERROR"}
NOTES = {
    "posttrain": "as shipped",
    "vllm": "the faster of: all in one process, and its own engine process; it binds the cores as it chooses; prefix "
    "caching on, no detokenisation, no log-probabilities (ours records them)",
    "transformers": "one left-padded batch, dynamic cache, SDPA",
}


def ours(settings: dict) -> Contestant:
    """The built-in engine."""
    return Contestant(
        "posttrain",
        "generate_posttrain.py",
        settings,
        NOTES["posttrain"],
        environment={"GOMP_SPINCOUNT": "10000"},
    )


def vllm(settings: dict) -> tuple[Contestant | None, dict]:
    """vLLM as it is fastest on this workload, and what was tried."""
    wide = settings | {"max_rows": 256, "prefix_caching": True}
    ways = {"vllm, one process": VLLM | ONE_PROCESS, "vllm, engine process": VLLM}
    best, tried = audition(
        [Contestant(name, "generate_vllm.py", wide, NOTES["vllm"], PEERS, way) for name, way in ways.items()],
        warm_ups=1,
    )
    return (replace(best, name="vllm") if best else None), tried


def with_rates(found: dict) -> dict:
    """`found` with tokens per second in every run and median."""
    for contestant in found.values():
        for run in [*contestant["runs"], *([contestant["median"]] if contestant.get("median") else [])]:
            run["tokens_per_second"] = run["tokens"] / run["seconds"]
    return found


def main() -> None:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", default="sixty_four,one,group")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--out", default="generation")
    args = parser.parse_args()
    prompts = chat_prompts(64)
    long = (prompts[0] + [t for p in chat_prompts(40)[1:] for t in p])[:1000]
    base = {"model": model_folder(), "dtype": "bfloat16", "new_tokens": args.new_tokens}
    rows = {
        "sixty_four": (base | {"prompts": prompts, "samples": 1}, True),
        "one": (base | {"prompts": prompts[:1], "samples": 1}, True),
        "group": (base | {"prompts": [long], "samples": 16}, False),
    }
    found = {}
    for name in args.rows.split(","):
        settings, with_generate = rows[name]
        print(name)
        best, tried = vllm(settings)
        entries = [ours(settings), *([best] if best else [])]
        if with_generate:
            entries.append(
                Contestant("transformers", "generate_transformers.py", settings, NOTES["transformers"], PEERS)
            )
        result = with_rates(race(entries, runs=args.runs))
        for contestant in result.values():
            contestant["settings"] = {
                k: v for k, v in contestant["settings"].items() if k not in ("prompts", "model")
            }
        result["ratios"] = {
            f"posttrain/{peer}": ratio(result, "posttrain", peer, "tokens_per_second")
            for peer in ("vllm", "transformers")
        }
        result["tried for vllm"] = tried
        print(f"  {result['ratios']}")
        found[name] = result
        write(args.out, found)  # after each row: the next may fail


if __name__ == "__main__":
    main()
