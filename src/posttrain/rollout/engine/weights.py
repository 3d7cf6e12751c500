"""The engine's own copy of the weights, cast once, fused, and packed where the CPU library can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.decoder import Shape
from posttrain.model.native import layers as native
from posttrain.model.native import product
from posttrain.model.native.build import LANES
from posttrain.model.ops import swiglu


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN can hold a weight in its own blocked layout: on a CPU, bfloat16 only if that multiplies it.

    A product of few rows otherwise spends more time on laying out the weight than on multiplying.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class Linear:
    """x -> x @ weight^T; the weight is laid out once, where a kernel wants that, for about `rows` rows of input."""

    def __init__(self, weight: Tensor, *, rows: int) -> None:
        self.least_rows = 1
        """Rows that inputs are filled up to: oneDNN's packed bfloat16 weights meet four rows sooner than one, and AMX
        any few alike. There the order of a row's sums depends on their number, so it is the same from one row to
        eight, which is as many as a sample that runs alone is checked by (`draft.py`)."""
        self.is_laid = product.fits(weight)
        if self.is_laid:
            self.weight, self._multiply, self._plain = product.laid(weight), product.multiply, product.plain
        elif can_pack(weight.dtype, weight.device):
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            self._multiply, self._plain = _packed_linear, Tensor.to_dense
            if weight.dtype == torch.bfloat16:
                self.least_rows = 8 if torch.cpu._is_amx_tile_supported() else 4
        else:
            self.weight, self._multiply, self._plain = weight, F.linear, Tensor.detach

    def __call__(self, x: Tensor) -> Tensor:
        """(A, outputs) from x (A, inputs)."""
        return self._multiply(x, self.weight)

    def plain(self) -> Tensor:
        """(outputs, inputs) weight as it was given."""
        return self._plain(self.weight)


class GateUp:
    """x -> silu(x @ gate^T) * (x @ up^T), as one product of the weights one after the other, (2 F, inputs)."""

    def __init__(self, weight: Tensor, *, rows: int) -> None:
        self.is_laid = product.fits(weight) and len(weight) % (2 * LANES) == 0
        self._linear = Linear(product.in_turns(weight) if self.is_laid else weight, rows=rows)
        self.weight, self.least_rows = self._linear.weight, self._linear.least_rows

    def __call__(self, x: Tensor) -> Tensor:
        """(A, F) from x (A, inputs)."""
        if self.is_laid:
            return product.multiply_gated(x, self.weight)
        return swiglu(*self._linear(x).chunk(2, 1))

    def plain(self) -> Tensor:
        """(2 F, inputs) weight as it was given."""
        plain = self._linear.plain()
        return product.one_after_the_other(plain) if self.is_laid else plain


def _packed_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Norm weights are float32; the two `*_in` norms exist in Llama, `*_out` in OLMo 2."""

    qkv: Linear
    out: Linear
    gate_up: GateUp
    down: Linear
    attention_in: Tensor | None
    attention_out: Tensor | None
    mlp_in: Tensor | None
    mlp_out: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None

    @property
    def norms(self) -> tuple[Tensor | None, ...]:
        """In the order that the kernels have them."""
        entering = self.attention_in, self.attention_out, self.mlp_in, self.mlp_out
        return *entering, self.query_norm, self.key_norm


@dataclass(frozen=True, slots=True)
class EngineWeights:
    """All layers, the embedding (V, H) and the output projection."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Linear
    in_one_call: native.Layers | None
    """All of them for the newest tokens, where every product is the kernels' own."""

    @property
    def least_rows(self) -> int:
        """Rows that a step is filled up to, the most that one of its products wants."""
        layer = self.layers[0]
        return max(
            linear.least_rows for linear in (layer.qkv, layer.out, layer.gate_up, layer.down, self.head)
        )

    @classmethod
    def of(
        cls,
        weights: Mapping[str, Tensor],
        shape: Shape,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rows: int,
    ) -> EngineWeights:
        """Copy `weights` (Hugging Face names, any dtype and device) in; `rows` is the usual batch size."""

        def joined(*names: str) -> Tensor:
            # `clone` because a float32 copy must not follow the learner's next update
            parts = [weights[name].detach().to(device, dtype) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

        def fused(*names: str) -> Linear:
            return Linear(joined(*names), rows=rows)

        def norm(name: str) -> Tensor | None:
            found = weights.get(name)
            return None if found is None else found.detach().to(device, torch.float32, copy=True)

        def layer(index: int) -> LayerWeights:
            at = f"model.layers.{index}."
            attention, mlp = at + "self_attn.", at + "mlp."
            llama = shape.family == "llama"
            return LayerWeights(
                qkv=fused(*(f"{attention}{part}_proj.weight" for part in "qkv")),
                out=fused(attention + "o_proj.weight"),
                gate_up=GateUp(joined(mlp + "gate_proj.weight", mlp + "up_proj.weight"), rows=rows),
                down=fused(mlp + "down_proj.weight"),
                attention_in=norm(at + "input_layernorm.weight"),
                attention_out=None if llama else norm(at + "post_attention_layernorm.weight"),
                mlp_in=norm(at + "post_attention_layernorm.weight") if llama else None,
                mlp_out=norm(at + "post_feedforward_layernorm.weight"),
                query_norm=norm(attention + "q_norm.weight"),
                key_norm=norm(attention + "k_norm.weight"),
            )

        layers = tuple(layer(index) for index in range(shape.num_layers))
        final = norm("model.norm.weight")
        assert final is not None
        head = fused("model.embed_tokens.weight" if shape.tied else "lm_head.weight")
        embedding = weights["model.embed_tokens.weight"].detach().to(device, dtype, copy=True)
        return cls(embedding, layers, final, head, _in_one_call(layers, head, final, embedding, shape))


def _in_one_call(
    layers: tuple[LayerWeights, ...], head: Linear, norm: Tensor, embedding: Tensor, shape: Shape
) -> native.Layers | None:
    products = (p for layer in layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down))
    if not all(product.is_laid for product in (*products, head)):
        return None
    own = [
        native.Layer(
            *(layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight),
            norms=layer.norms,
        )
        for layer in layers
    ]
    heads = {"heads": shape.num_heads, "kv_heads": shape.num_kv_heads, "head_dim": shape.head_dim}
    return native.Layers(own, head.weight, norm, embedding, **heads, eps=shape.norm_eps)
