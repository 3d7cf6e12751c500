"""The two forward passes of generation: whole prompts, and one token for every running sample.

The residual stream is float32; matrix products and attention take the weights' dtype, as in the learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.attention import Layout, attention
from posttrain.model.decoder import Angles, Shape
from posttrain.model.native import elementwise
from posttrain.model.native.newest import Lines
from posttrain.model.ops import rms_norm
from posttrain.model.tree import MIN_SHARED, plant, shared_length
from posttrain.rollout.engine.attend import Newest, rotated
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.weights import EngineWeights, LayerWeights


def _entering(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """What a block reads of the residual stream: normalised in Llama, as it is in OLMo 2."""
    return x.to(dtype) if weight is None else rms_norm(x, weight, eps, dtype)


def _added(
    x: Tensor, y: Tensor, leaving: Tensor | None, entering: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual stream with a block's result added, normalised first in OLMo 2, and what the next block reads.

    `x` may be overwritten.
    """
    if leaving is None and entering is not None and elementwise.fits(x, y.dtype):
        return x, elementwise.add_rms_norm_(x, y, entering, eps)
    x = x + (y if leaving is None else rms_norm(y, leaving, eps))
    return x, _entering(x, entering, eps, y.dtype)


def _project(layer: LayerWeights, x: Tensor, shape: Shape) -> Tensor:
    """(A, (heads + 2 kv_heads) * D) queries, keys and values, normalised in OLMo 2, not rotated yet."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    qkv = layer.qkv(x)
    if layer.query_norm is None or layer.key_norm is None:
        return qkv
    query = rms_norm(qkv[:, :queries], layer.query_norm, shape.norm_eps)
    key = rms_norm(qkv[:, queries : queries + keys], layer.key_norm, shape.norm_eps)
    return torch.cat([query, key, qkv[:, queries + keys :]], 1)


def _layers(
    weights: EngineWeights, shape: Shape, x: Tensor, attend: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """(A, H) normalised hidden states; `attend(index, projected)` is a layer's attention, (A, heads * D)."""
    eps, dtype = shape.norm_eps, weights.embedding.dtype
    entering = _entering(x, weights.layers[0].attention_in, eps, dtype)
    for index, layer in enumerate(weights.layers):
        attended = attend(index, _project(layer, entering, shape))
        x, entering = _added(x, layer.out(attended), layer.attention_out, layer.mlp_in, eps)
        last = index + 1 == len(weights.layers)
        following = weights.norm if last else weights.layers[index + 1].attention_in
        x, entering = _added(x, layer.down(layer.gate_up(entering)), layer.mlp_out, following, eps)
    return entering


@dataclass(frozen=True, slots=True)
class Held:
    """A prompt that was run: its tokens, and their keys and values (layers, kv_heads, length, head_dim)."""

    ids: np.ndarray
    keys: Tensor
    values: Tensor

    def shared_with(self, prompt: Sequence[int]) -> int:
        """Tokens of `prompt` whose keys and values are here, its last never: it is what predicts."""
        return min(shared_length(self.ids, np.asarray(prompt, np.int64)), len(prompt) - 1)


@torch.inference_mode()
def prefill(
    weights: EngineWeights,
    shape: Shape,
    angles: Angles,
    prompts: Sequence[Sequence[int]],
    *,
    before: Held | None = None,
) -> tuple[Tensor, list[Held]]:
    """(G, V) logits after each prompt's last token, and each prompt's keys and values.

    What prompts have in common at their start is run once, and not at all where all share it with `before`.
    """
    device, dtype = weights.embedding.device, weights.embedding.dtype
    lengths = [len(prompt) for prompt in prompts]
    ids = np.concatenate([np.asarray(prompt, np.int64) for prompt in prompts])
    trunk = 0 if before is None else min(before.shared_with(prompt) for prompt in prompts)
    trunk = trunk if trunk >= MIN_SHARED else 0
    tree = plant(ids, lengths, trunk=trunk)
    layout = Layout(tree, dtype, device, trunk)
    run = tree.tokens[trunk:]
    positions = np.concatenate([np.arange(length) for length in lengths])[run]
    x = F.embedding(torch.from_numpy(ids[run]).to(device), weights.embedding).float()
    cos, sin = angles.at(torch.from_numpy(positions).to(device), dtype)
    size = (len(weights.layers), len(tree.tokens), shape.num_kv_heads, shape.head_dim)
    keys, values = (torch.empty(size, dtype=dtype, device=device) for _ in range(2))
    if before is not None:
        keys[:, :trunk] = before.keys[:, :, :trunk].transpose(1, 2)
        values[:, :trunk] = before.values[:, :, :trunk].transpose(1, 2)

    def attend(index: int, projected: Tensor) -> Tensor:
        query, keys[index, trunk:], values[index, trunk:] = rotated(projected, shape, cos, sin)
        return attention(query, keys[index], values[index], layout).flatten(1)

    hidden = _layers(weights, shape, x, attend)
    places = torch.from_numpy(tree.places).to(device)
    last = places[torch.tensor(lengths, device=device).cumsum(0) - 1] - trunk
    logits = weights.head(hidden[last])
    rows = zip(np.split(ids, np.cumsum(lengths)[:-1]), places.split(lengths), strict=True)
    return logits, [
        Held(row, keys[:, at].transpose(1, 2).contiguous(), values[:, at].transpose(1, 2).contiguous())
        for row, at in rows
    ]


@torch.inference_mode()
def decode(
    weights: EngineWeights,
    shape: Shape,
    angles: Angles,
    ids: Tensor,
    lengths: Tensor,
    cache: Cache,
    *,
    longest: int,
    lines: Lines | None = None,
) -> Tensor:
    """(A, V) logits after each sample's newest token `ids` (A,), whose keys and values join `cache`.

    `lengths` (A,) counts each sample's tokens, prompt and newest included, and none is above `longest`; sample a
    lies in slot a, or in a blocked cache where `lines` say. The device is asked nothing, so that the step can be
    recorded.
    """
    rows, dtype = len(ids), weights.embedding.dtype
    if weights.in_one_call is not None and lines is not None:
        places = angles.at(lengths - 1, dtype)
        return weights.in_one_call.run(ids, places, cache.keys, cache.values, lines)
    filled = F.pad(ids, (0, max(0, weights.least_rows - rows)))
    x = F.embedding(filled, weights.embedding).float()
    cos, sin = angles.at(F.pad(lengths - 1, (0, len(filled) - rows)), dtype)
    newest = Newest(cache, shape, lengths, cos, sin, longest=longest, lines=lines)
    return weights.head(_layers(weights, shape, x, newest.attend))[:rows]
