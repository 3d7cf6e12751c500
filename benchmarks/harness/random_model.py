"""A model of OLMo 2 1B's shape with random weights: what speed needs of a model, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.model.shards import write_shards
from posttrain.model.tiny import tiny_olmo2

NAME = "random-olmo2-1b"
SHAPE = {
    "vocab_size": 100_352,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}
"""The config of allenai/OLMo-2-0425-1B."""
_SHARD_BYTES = 2**29


def build(folder: Path, shape: dict[str, Any] | None = None) -> None:
    """Write the model into `folder` in bfloat16, with the tiny model's tokenizer, whose ids are the first ones.

    One weight at a time is made; about a shard (half a GiB) is held.
    """
    from transformers import AutoConfig

    tiny_olmo2(folder)  # its tokenizer, template and token ids
    config = AutoConfig.from_pretrained(folder)
    config.update((shape or SHAPE) | {"dtype": torch.bfloat16})
    config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    write_shards(folder, _weights(config), max_bytes=_SHARD_BYTES)


def _weights(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Matrices from N(0, initializer_range^2), norms of one."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stream = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16)
        if weight.dim() > 1:
            yield name, weight.normal_(0.0, config.initializer_range, generator=stream)
        else:
            yield name, weight.fill_(1.0)
