"""What the machine's matrix products allow, and which share of that a measurement comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.machine import matrix_rate

TRAINED, GENERATED = 6, 2
"""Operations per parameter and token: two forwards, and four more backwards (arXiv:2001.08361 section 2.1)."""


def active_parameters(folder: Path) -> int:
    """Parameters that meet each token: all but the embedding, which is looked up. The output projection counts,
    as the embedding's own weights where the two are tied.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = 0 if head is embedding else embedding.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - looked_up


def matrix_limit(folder: Path, dtype: str, *, device: str, flop_per_parameter: int) -> dict[str, Any]:
    """GFLOP/s of matrix products in `dtype`, taken now, and GFLOP per token of the model in `folder`.

    Per token: `flop_per_parameter` x `active_parameters`. Attention's own products are not counted, nor the
    prompts that generation reads. The output projection is counted for every trained token, though a trainer
    may leave out those that are no target of the loss.
    """
    import torch

    return {
        "dtype": dtype,
        "gflops": matrix_rate(getattr(torch, dtype), device=device),
        "gflop_per_token": flop_per_parameter * active_parameters(folder) / 1e9,
    }


def share(tokens_per_second: float, limit: dict[str, Any]) -> float:
    """The part of `matrix_limit` that so many tokens a second come to."""
    return float(tokens_per_second * limit["gflop_per_token"] / limit["gflops"])
