"""The Llama and OLMo 2 decoder, over sequences laid end to end without padding.

`Decoder` reads the parameters of an ordinary Hugging Face module and runs its own forward pass, so
loading, saving and adapters stay Hugging Face's while training touches no padding. Parameters may be
float32 masters: each weight is cast to the compute dtype where it is used, and its gradient arrives in
float32. The residual stream keeps the parameters' precision; matrix products and attention take the
compute dtype. The engine does the same in the same order, so that the two agree on log-probabilities.

Left out: dropout, attention biases of other families, sliding windows; such models are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.errors import ModelError
from posttrain.model.attention import Layout, attention
from posttrain.model.lora import adapted_linear
from posttrain.model.ops import embedded, linear, rms_norm, rotary, swiglu
from posttrain.model.remade import Remade, not_kept
from posttrain.model.tree import plant

FAMILIES = ("llama", "olmo2")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes a decoder is made of, read from a Hugging Face config."""

    family: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of `config`; ModelError for a family whose forward pass is not written here."""
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"models of type {config.model_type!r} are not supported; supported: {', '.join(FAMILIES)}"
            )
        if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
            raise ModelError(f"{config.model_type} models with biases are not supported")
        if config.hidden_act not in ("silu", "swish"):
            raise ModelError(
                f"{config.model_type} models with activation {config.hidden_act!r} are not supported"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            family=config.model_type,
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            vocab=config.vocab_size,
            norm_eps=config.rms_norm_eps,
            tied=bool(config.tie_word_embeddings),
        )


class Angles:
    """cos and sin of the rotary angles, from the model's own inverse frequencies."""

    def __init__(self, config: Any, device: torch.device) -> None:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        rotary_embedding = LlamaRotaryEmbedding(config)
        if rotary_embedding.rope_type in ("dynamic", "longrope"):
            raise ModelError(f"rope scaling of type {rotary_embedding.rope_type!r} is not supported")
        self._inverse_frequencies = rotary_embedding.inv_freq.float().to(device)  # (D/2,)
        self._scale = float(rotary_embedding.attention_scaling)

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(N, 1, D/2) cos and sin of `positions` (N,), in `dtype`."""
        angles = positions.float()[:, None, None] * self._inverse_frequencies
        return (angles.cos() * self._scale).to(dtype), (angles.sin() * self._scale).to(dtype)


class Decoder:
    """Hidden states of packed sequences, from the parameters of `module` (LlamaForCausalLM, Olmo2ForCausalLM)."""

    def __init__(
        self, module: nn.Module, *, compute_dtype: torch.dtype, gradient_checkpointing: bool = False
    ) -> None:
        config: Any = module.config
        self.shape = Shape.of(config)
        self.module: Any = module
        self.compute_dtype = compute_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self._angles = Angles(config, next(module.parameters()).device)

    @property
    def head_weight(self) -> Tensor:
        """(V, H) output projection; the embedding itself when the two are tied."""
        weight: Tensor = self.module.lm_head.weight
        return weight

    def layers(self) -> Iterator[Any]:
        yield from self.module.model.layers

    def hidden(self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(N, H) final normalised hidden states; row r attends to row r's earlier tokens and nothing else.

        ids and positions are (N,) int64; lengths are the R row lengths, which sum to N. Starts that rows have
        in common are computed once.
        """
        tree = plant(ids.cpu().numpy(), lengths)
        tokens, places = (torch.from_numpy(x).to(ids.device) for x in (tree.tokens, tree.places))
        layout = Layout(tree, self.compute_dtype, ids.device)
        cos, sin = self._angles.at(positions[tokens], self.compute_dtype)
        embedding = self.module.model.embed_tokens.weight
        # rounded like every other weight, then carried on in the parameters' precision
        x = (
            embedded(ids[tokens], embedding)
            .to(self.compute_dtype)
            .to(torch.promote_types(embedding.dtype, torch.float32))
        )
        for layer in self.layers():
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._layer, layer, x, cos, sin, layout, use_reentrant=False)
            else:
                x = self._layer(layer, x, cos, sin, layout)
        # in the residual stream's precision: a shared token gathers a gradient from each of its rows
        x = x.index_select(0, places)
        return rms_norm(x, self.module.model.norm.weight, self.shape.norm_eps, self.compute_dtype)

    def _linear(self, x: Tensor, projection: Any, *remade: Remade) -> Tensor:
        """`projection` of x; the backward pass makes x again where `remade` is given."""
        with not_kept(remade):
            if type(projection) is nn.Linear:
                return linear(x, projection.weight)
            return adapted_linear(x, projection)

    def _remade(self, value: Tensor, make: Callable[[], Tensor]) -> tuple[Remade, ...]:
        # where whole layers are computed again there is nothing to save
        return () if self.gradient_checkpointing else (Remade(value, make),)

    def _layer(self, layer: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        eps, narrow = self.shape.norm_eps, self.compute_dtype
        if self.shape.family == "olmo2":  # arXiv:2501.00656 section 3: norms follow the blocks
            attended = self._attention(layer.self_attn, x.to(narrow), cos, sin, layout)
            x = x + rms_norm(attended, layer.post_attention_layernorm.weight, eps)
            mixed = self._mlp(layer.mlp, x.to(narrow))
            return x + rms_norm(mixed, layer.post_feedforward_layernorm.weight, eps)
        normed, *remade = self._entering(x, layer.input_layernorm.weight)
        x = x + self._attention(layer.self_attn, normed, cos, sin, layout, *remade)
        normed, *remade = self._entering(x, layer.post_attention_layernorm.weight)
        return x + self._mlp(layer.mlp, normed, *remade)

    def _entering(self, x: Tensor, weight: Tensor) -> tuple[Any, ...]:
        """What a Llama block reads of the residual stream."""
        args = self.shape.norm_eps, self.compute_dtype
        normed = rms_norm(x, weight, *args)
        return normed, *self._remade(normed, partial(rms_norm, x.detach(), weight.detach(), *args))

    def _attention(
        self, attn: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout, *remade: Remade
    ) -> Tensor:
        shape = self.shape
        query, key, value = (self._linear(x, p, *remade) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        if shape.family == "olmo2":
            query = rms_norm(query, attn.q_norm.weight, shape.norm_eps)
            key = rms_norm(key, attn.k_norm.weight, shape.norm_eps)
        query = rotary(query.view(-1, shape.num_heads, shape.head_dim), cos, sin)
        key = rotary(key.view(-1, shape.num_kv_heads, shape.head_dim), cos, sin)
        value = value.view(-1, shape.num_kv_heads, shape.head_dim)
        return self._linear(attention(query, key, value, layout).flatten(1), attn.o_proj)

    def _mlp(self, mlp: Any, x: Tensor, *remade: Remade) -> Tensor:
        gate, up = (self._linear(x, p, *remade) for p in (mlp.gate_proj, mlp.up_proj))
        gated = swiglu(gate, up)
        return self._linear(
            gated, mlp.down_proj, *self._remade(gated, partial(swiglu, gate.detach(), up.detach()))
        )
