"""The two forward passes of generation: whole prompts, and one token for every running sample.

A sample's keys lie in two places: its prompt's, held once for the whole group, and its own. Attention runs
over each and the results are merged exactly, so a group reads its prompt's keys once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.decoder import Angles, Layout, Shape
from posttrain.model.ops import rms_norm, rotary
from posttrain.rollout.engine.attend import attend, length_bias, merge
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.weights import EngineWeights, LayerWeights


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else rms_norm(x, weight, eps)


def _project(layer: LayerWeights, x: Tensor, shape: Shape, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """(A, heads, D) queries and (A, kv_heads, D) keys, both rotated, and values."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    qkv = layer.qkv(x)
    if layer.query_norm is not None and layer.key_norm is not None:
        query = rms_norm(qkv[:, :queries], layer.query_norm, shape.norm_eps)
        key = rms_norm(qkv[:, queries : queries + keys], layer.key_norm, shape.norm_eps)
        qkv = torch.cat([query, key, qkv[:, queries + keys :]], 1)
    heads = qkv.view(len(x), -1, shape.head_dim)
    rotated = rotary(heads[:, : shape.num_heads + shape.num_kv_heads], cos, sin)
    value = heads[:, shape.num_heads + shape.num_kv_heads :]
    return rotated[:, : shape.num_heads], rotated[:, shape.num_heads :], value


def _finish_layer(layer: LayerWeights, x: Tensor, attended: Tensor, shape: Shape) -> Tensor:
    eps = shape.norm_eps
    x = x + _normed(layer.out(attended), layer.attention_out, eps)
    gate, up = layer.gate_up(_normed(x, layer.mlp_in, eps)).chunk(2, 1)
    return x + _normed(layer.down(F.silu(gate).mul_(up)), layer.mlp_out, eps)


@torch.inference_mode()
def prefill(
    weights: EngineWeights, shape: Shape, angles: Angles, prompts: Sequence[Sequence[int]], cache: Cache, slot: int
) -> Tensor:
    """(G, V) logits after each prompt's last token; keys and values go to slots `slot`, `slot` + 1, ..."""
    device = weights.embedding.device
    lengths = tuple(len(prompt) for prompt in prompts)
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    rows = torch.repeat_interleave(torch.tensor(lengths, device=device)) + slot
    layout = Layout.of(lengths, device)
    x = F.embedding(ids, weights.embedding)
    cos, sin = angles.at(positions, x.dtype)
    repeats = shape.num_heads // shape.num_kv_heads
    for index, layer in enumerate(weights.layers):
        normed = _normed(x, layer.attention_in, shape.norm_eps)
        query, key, value = _project(layer, normed, shape, cos, sin)
        cache.keys[index, rows, :, positions] = key
        cache.values[index, rows, :, positions] = value
        out = F.scaled_dot_product_attention(
            layout.spread(query),
            layout.spread(key.repeat_interleave(repeats, 1)),
            layout.spread(value.repeat_interleave(repeats, 1)),
            is_causal=True,
        )
        x = _finish_layer(layer, x, layout.gather(out).flatten(1), shape)
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    return weights.head(rms_norm(x[last], weights.norm, shape.norm_eps))


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step's geometry: A running samples of G prompts, at most Q samples to a prompt."""

    ids: Tensor
    """(A,) int64: each sample's newest token, whose keys are not cached yet."""
    positions: Tensor
    """(A,) int64: its position, prompt included."""
    sample_lengths: Tensor
    """(A,) int64: the sample's own tokens, the newest included."""
    prompt_lengths: Tensor
    """(G,) int64."""
    places: Tensor | None
    """(A,) int64 index of each sample in the (G * Q) grid of prompts' samples; None if that is 0..A-1."""
    samples_per_prompt: int
    """Q."""


@torch.inference_mode()
def decode(
    weights: EngineWeights, shape: Shape, angles: Angles, step: Step, prompts: Cache, samples: Cache
) -> Tensor:
    """(A, V) logits after each sample's newest token; its keys and values are added to `samples`."""
    rows, groups = len(step.ids), len(step.prompt_lengths)
    x = F.embedding(step.ids, weights.embedding)
    cos, sin = angles.at(step.positions, x.dtype)
    longest_prompt, longest = int(step.prompt_lengths.max()), int(step.sample_lengths.max())
    prompt_bias = length_bias(step.prompt_lengths, longest_prompt, x.dtype)
    sample_bias = length_bias(step.sample_lengths, longest, x.dtype)
    kv_heads, per_kv = shape.num_kv_heads, shape.num_heads // shape.num_kv_heads
    heads = torch.arange(rows * kv_heads, device=x.device) * samples.length
    newest = heads + (step.sample_lengths - 1).repeat_interleave(kv_heads)
    grid = groups * step.samples_per_prompt

    for index, layer in enumerate(weights.layers):
        normed = _normed(x, layer.attention_in, shape.norm_eps)
        query, key, value = _project(layer, normed, shape, cos, sin)
        samples.keys[index].flatten(0, 2).index_copy_(0, newest, key.flatten(0, 1))
        samples.values[index].flatten(0, 2).index_copy_(0, newest, value.flatten(0, 1))
        own = attend(
            query.reshape(rows, kv_heads, per_kv, shape.head_dim),
            samples.keys[index, :rows, :, :longest],
            samples.values[index, :rows, :, :longest],
            sample_bias,
        )
        asked = query
        if step.places is not None:
            asked = query.new_zeros(grid, *query.shape[1:]).index_copy_(0, step.places, query)
        by_prompt = asked.reshape(groups, step.samples_per_prompt, kv_heads, per_kv, shape.head_dim)
        out, normaliser = attend(
            by_prompt.transpose(1, 2).flatten(2, 3),
            prompts.keys[index, :groups, :, :longest_prompt],
            prompts.values[index, :groups, :, :longest_prompt],
            prompt_bias,
        )
        split = (groups, kv_heads, step.samples_per_prompt, per_kv)
        out = out.reshape(*split, shape.head_dim).transpose(1, 2).reshape(grid, kv_heads, per_kv, shape.head_dim)
        normaliser = normaliser.reshape(split).transpose(1, 2).reshape(grid, kv_heads, per_kv)
        if step.places is not None:
            out, normaliser = out[step.places], normaliser[step.places]
        x = _finish_layer(layer, x, merge((out, normaliser), own).flatten(1), shape)
    return weights.head(rms_norm(x, weights.norm, shape.norm_eps))
