"""Tokens a second of the built-in engine, vLLM's CPU build and transformers' `generate`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.device import arguments, precision
from harness.limit import GENERATED, matrix_limit, share
from harness.race import PEERS, Contestant, audition, race, ratio, write
from harness.workload import chat_prompts, model_folder

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_LOGGING_LEVEL": "ERROR"}
NOTES = {
    "posttrain": "as shipped",
    "vllm": "the faster of: all in one process, and its own engine process; it binds the cores as it chooses; prefix "
    "caching on, no detokenisation, no log-probabilities (ours records them)",
    "transformers": "one left-padded batch, SDPA; on a CPU the dynamic cache, on a GPU the faster of that and the "
    "static one, which it compiles",
}
ROWS = {"cpu": "sixty_four,one,group", "cuda": "two_fifty_six,sixty_four,one,group"}
CACHE_GIB = {"cpu": 4.0, "cuda": 24.0}
"""Room for the keys and values of every row's samples at once."""
WITH_LIMIT = ("sixty_four", "two_fifty_six")
"""Rows with so much to do at once that matrix products should be what limits them."""


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
    if settings["device"] != "cpu":
        return None, {"vllm": "left out: the peers' environment has vLLM's CPU build, which uses no GPU"}
    wide = settings | {"max_rows": 256, "prefix_caching": True}
    ways = {"vllm, one process": VLLM | ONE_PROCESS, "vllm, engine process": VLLM}
    best, tried = audition(
        [Contestant(name, "generate_vllm.py", wide, NOTES["vllm"], PEERS, way) for name, way in ways.items()],
        warm_ups=1,
    )
    return (replace(best, name="vllm") if best else None), tried


def transformers(settings: dict) -> tuple[Contestant | None, dict]:
    """`generate` as it is fastest, and what was tried; on a CPU there is one way."""
    plain = Contestant("transformers", "generate_transformers.py", settings, NOTES["transformers"], PEERS)
    if settings["device"] == "cpu":
        return plain, {}
    ways = {"transformers, dynamic cache": {}, "transformers, static cache": {"cache": "static"}}
    best, tried = audition(
        [replace(plain, name=name, settings=settings | way) for name, way in ways.items()], warm_ups=1
    )
    return (replace(best, name="transformers") if best else plain), tried


def with_rates(found: dict, limit: dict[str, Any] | None) -> dict:
    """`found` with tokens per second in every run and median, and the share of `limit` that they are."""
    for contestant in found.values():
        for run in [*contestant["runs"], *([contestant["median"]] if contestant.get("median") else [])]:
            run["tokens_per_second"] = run["tokens"] / run["seconds"]
            if limit is not None:
                run["share_of_matrix_limit"] = share(run["tokens_per_second"], limit)
    return found


def measure(name: str, settings: dict, *, with_generate: bool, runs: int) -> dict[str, Any]:
    """One row: each peer's ways by themselves, then the fastest of each against ours."""
    best, tried = vllm(settings)
    peer, tried_too = transformers(settings) if with_generate else (None, {})
    found = race([ours(settings), *filter(None, [best, peer])], runs=runs)
    limit = None
    if name in WITH_LIMIT:
        folder = Path(settings["model"])
        limit = matrix_limit(
            folder, settings["dtype"], device=settings["device"], flop_per_parameter=GENERATED
        )
    result = with_rates(found, limit)
    for contestant in result.values():
        contestant["settings"] = {
            k: v for k, v in contestant["settings"].items() if k not in ("prompts", "model")
        }
    result["ratios"] = {
        f"posttrain/{rival}": ratio(result, "posttrain", rival, "tokens_per_second")
        for rival in ("vllm", "transformers")
    }
    return (
        result
        | {"tried for vllm": tried, "tried for transformers": tried_too}
        | ({} if limit is None else {"matrix_limit": limit})
    )


def main() -> None:
    """Run the rows that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", help=f"of two_fifty_six and, if not given on a CPU, {ROWS['cpu']}")
    parser.add_argument("--new-tokens", type=int, default=128)
    args = arguments(parser, "generation")
    prompts = chat_prompts(256)
    long = (prompts[0] + [t for p in prompts[1:40] for t in p])[:1000]
    base = {
        "model": model_folder(),
        "device": args.device,
        "dtype": precision(args.device),
        "new_tokens": args.new_tokens,
        "cache_gib": CACHE_GIB[args.device],
    }
    rows = {
        "two_fifty_six": (base | {"prompts": prompts, "samples": 1}, True),
        "sixty_four": (base | {"prompts": prompts[:64], "samples": 1}, True),
        "one": (base | {"prompts": prompts[:1], "samples": 1}, True),
        "group": (base | {"prompts": [long], "samples": 16}, False),
    }
    found = {}
    for name in (args.rows or ROWS[args.device]).split(","):
        settings, with_generate = rows[name]
        print(name)
        found[name] = measure(name, settings, with_generate=with_generate, runs=args.runs)
        print(f"  {found[name]['ratios']}")
        write(args.out, found, device=args.device)  # after each row: the next may fail


if __name__ == "__main__":
    main()
