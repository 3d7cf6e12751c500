"""The shapes of known models, and how many parameters a shape has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.lora import LoRA
from posttrain.errors import RecipeError
from posttrain.model.builtin import BUILTIN

FAMILIES = ("llama", "olmo2")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes a Llama or OLMo 2 decoder is made of."""

    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int
    tied: bool = False
    family: str = "llama"

    @property
    def query_width(self) -> int:
        """Numbers in all heads' queries of a token."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Numbers in all heads' keys of a token; as many in its values."""
        return self.num_kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and of the output projection as often as it is there."""
        return self.vocab * self.hidden

    @property
    def matrix_parameters(self) -> int:
        """Of one layer's projections."""
        return sum(inputs * outputs for inputs, outputs in self.projections.values())

    @property
    def layer_parameters(self) -> int:
        """Of one layer, norms included."""
        norms = 2 * self.hidden
        if self.family == "olmo2":
            norms += self.query_width + self.key_width
        return self.matrix_parameters + norms

    @property
    def body_parameters(self) -> int:
        """Of embedding, layers and last norm: what a reward or value model shares with a language model."""
        return self.embedding_parameters + self.num_layers * self.layer_parameters + self.hidden

    @property
    def parameters(self) -> int:
        """Of the language model; a tied output projection counts once."""
        return self.body_parameters + (0 if self.tied else self.embedding_parameters)

    @property
    def projections(self) -> Mapping[str, tuple[int, int]]:
        """Inputs and outputs of each of a layer's matrices, by the name an adapter goes by."""
        hidden, query, key, wide = self.hidden, self.query_width, self.key_width, self.intermediate
        return {
            "q_proj": (hidden, query),
            "k_proj": (hidden, key),
            "v_proj": (hidden, key),
            "o_proj": (query, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }

    @property
    def largest_matrix(self) -> int:
        """Parameters of a layer's largest matrix."""
        return max(inputs * outputs for inputs, outputs in self.projections.values())

    def adapter_parameters(self, lora: LoRA) -> int:
        """Of the adapters on all layers (arXiv:2106.09685): rank x (inputs + outputs) each."""
        return self.num_layers * lora.rank * sum(sum(self.projections[name]) for name in lora.targets)

    def cache_bytes(self, width: int) -> int:
        """Bytes of one token's keys and values in all layers, in numbers of `width` bytes."""
        return 2 * self.num_layers * self.key_width * width


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, wide: int, vocab: int, *, tied: bool = False
) -> ModelShape:
    return ModelShape(hidden, layers, heads, kv_heads, wide, vocab, hidden // heads, tied)


def _olmo2(hidden: int, layers: int, heads: int, kv_heads: int, wide: int) -> ModelShape:
    return ModelShape(hidden, layers, heads, kv_heads, wide, 100_352, hidden // heads, family="olmo2")


_SMOLLM2_135M = _llama(576, 30, 9, 3, 1536, 49_152, tied=True)
_TULU_8B = _llama(4096, 32, 32, 8, 14_336, 128_264)
_TULU_70B = _llama(8192, 80, 64, 8, 28_672, 128_264)
_TULU_405B = _llama(16_384, 126, 128, 8, 53_248, 128_264)

SHAPES: Mapping[str, ModelShape] = {
    "huggingfacetb/smollm2-135m": _SMOLLM2_135M,
    "huggingfacetb/smollm2-360m": _llama(960, 32, 15, 5, 2560, 49_152, tied=True),
    "huggingfacetb/smollm2-1.7b": _llama(2048, 24, 32, 32, 8192, 49_152, tied=True),
    "meta-llama/llama-3.2-1b": _llama(2048, 16, 32, 8, 8192, 128_256, tied=True),
    "meta-llama/llama-3.2-3b": _llama(3072, 28, 24, 8, 8192, 128_256, tied=True),
    "meta-llama/llama-3.1-8b": _llama(4096, 32, 32, 8, 14_336, 128_256),
    "meta-llama/llama-3.1-70b": _llama(8192, 80, 64, 8, 28_672, 128_256),
    "meta-llama/llama-3.1-405b": _llama(16_384, 126, 128, 8, 53_248, 128_256),
    "allenai/llama-3.1-tulu-3-8b": _TULU_8B,
    "allenai/llama-3.1-tulu-3.1-8b": _TULU_8B,
    "allenai/llama-3.1-tulu-3-70b": _TULU_70B,
    "allenai/llama-3.1-tulu-3-405b": _TULU_405B,
    "allenai/olmo-2-0425-1b": _olmo2(2048, 16, 16, 16, 8192),
    "allenai/olmo-2-1124-7b": _olmo2(4096, 32, 32, 32, 11_008),
    "allenai/olmo-2-1124-13b": _olmo2(5120, 40, 40, 40, 13_824),
    "allenai/olmo-2-0325-32b": _olmo2(5120, 64, 40, 8, 27_648),
}
"""By the beginning of the hub id, in small letters: `-SFT`, `-DPO` and the like change no shape."""


def shape_of(model: str, config: Path | None = None) -> ModelShape:
    """The shape of the model that a recipe calls `model`: from `config`, its own folder, or the table.

    RecipeError when it is not known; nothing is fetched.
    """
    own = Path(model).expanduser() / "config.json"
    if config is not None:
        return read_shape(config)
    if own.is_file():
        return read_shape(own)
    name = (BUILTIN[model].base_model if model in BUILTIN else model).lower()
    known = [key for key in SHAPES if name.startswith(key)]
    if not known:
        raise RecipeError(
            f"the shape of {model!r} is not known without fetching it; give its config.json as --model-config"
        )
    return SHAPES[max(known, key=len)]


def read_shape(path: Path) -> ModelShape:
    """The shape in a Hugging Face config.json; RecipeError when it is none of a supported model."""
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as a model's config.json: {error}") from None
    family = config.get("model_type") if isinstance(config, dict) else None
    if family not in FAMILIES:
        raise RecipeError(f"{path} is of a model of type {family!r}; supported are {' and '.join(FAMILIES)}")
    try:
        heads = int(config["num_attention_heads"])
        return ModelShape(
            hidden=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            tied=bool(config.get("tie_word_embeddings", False)),
            family=family,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{path} lacks a size that a model has: {error}") from None
