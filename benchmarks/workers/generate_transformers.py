"""Generation by transformers' `generate`, all prompts in one padded batch."""

from __future__ import annotations

from typing import Any

from serve import serve


def prepare(settings: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    device = settings["device"]
    cache = {"cache_implementation": settings["cache"]} if "cache" in settings else {}
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=getattr(torch, settings["dtype"])
    ).eval()
    model.to(device)
    rows = [ids for ids in settings["prompts"] for _ in range(settings["samples"])]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)

    def work() -> dict[str, float]:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=settings["new_tokens"],
                max_new_tokens=settings["new_tokens"],
                eos_token_id=None,
                pad_token_id=0,
                **cache,
            )
        return {"tokens": float(out[:, longest:].numel())}

    return work


if __name__ == "__main__":
    serve(prepare)
