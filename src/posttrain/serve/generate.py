"""Answers to prompts, in order, as rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from posttrain.records import Message
from posttrain.rollout.open import open_engine
from posttrain.rollout.sampler import Request, Sampling
from posttrain.train.seeds import seed_of


def conversation(prompt: str, system: str | None) -> list[Message]:
    """One user message, after a system message if there is one."""
    opening = [] if system is None else [Message("system", system)]
    return [*opening, Message("user", prompt)]


def generate(
    model: str,
    prompts: Iterable[str],
    *,
    system: str | None = None,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    chat_template: str | None = None,
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """Rows {"prompt", "sample", "output", "stop_reason", "num_tokens"}: every sample of each prompt in turn."""
    engine, renderer = open_engine(model, chat_template=chat_template, device=device)
    texts = list(prompts)
    requests = [
        Request(
            renderer.prompt(conversation(text, system)),
            tuple(seed_of(seed, place, sample) for sample in range(num_samples)),
        )
        for place, text in enumerate(texts)
    ]
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    for text, completions in zip(texts, engine.generate(requests, sampling), strict=True):
        for sample, completion in enumerate(completions):
            yield {
                "prompt": text,
                "sample": sample,
                "output": completion.text,
                "stop_reason": completion.stop_reason,
                "num_tokens": len(completion.ids),
            }
