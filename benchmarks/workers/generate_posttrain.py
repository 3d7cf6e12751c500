"""Generation by the built-in engine."""

from __future__ import annotations

from typing import Any

from serve import serve


def prepare(settings: dict[str, Any]) -> Any:
    from pathlib import Path

    import torch

    from posttrain.model.load import load_model, load_tokenizer
    from posttrain.rollout.engine import Engine
    from posttrain.rollout.sampler import Request, Sampling

    folder, device = Path(settings["model"]), torch.device(settings["device"])
    model = load_model(folder, dtype=getattr(torch, settings["dtype"]), device=device)
    tokenizer = load_tokenizer(folder)
    engine = Engine(
        model.config,
        stop_ids=(),
        decode=tokenizer.decode,
        dtype=getattr(torch, settings["dtype"]),
        device=device,
        cache_gib=settings["cache_gib"],
        drafts=True,  # as chat, server and evaluation open it
    )
    engine.load(model.state_dict(), version=0)
    sampling = Sampling(temperature=1.0, max_new_tokens=settings["new_tokens"])
    count = 0

    def work() -> dict[str, float]:
        nonlocal count
        count += 1
        requests = [
            Request(
                tuple(ids), tuple(range(count * 1000 + i * 50, count * 1000 + i * 50 + settings["samples"]))
            )
            for i, ids in enumerate(settings["prompts"])
        ]
        done = engine.generate(requests, sampling)
        return {"tokens": sum(len(c.ids) for group in done for c in group)}

    return work


serve(prepare)
