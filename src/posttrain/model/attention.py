"""Causal attention over a tree of segments: padded grids for the kernel only, a backward pass that keeps little.

On a CPU both passes are our own kernels (`model/native`) where there is a compiler: they walk the
segments without padding, and the engine's decoding sums in the same order. Elsewhere they are PyTorch's. On a CPU
its backward pass spends most of its time on short rows outside matrix products; there the plain formula over
whole rows takes half as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.model.native import attention as native
from posttrain.model.tree import Segment, Tree

_DENSE_KEYS = 256
"""Rows up to this many keys take the plain formula backwards on a CPU, longer ones the kernel's own."""
_BUCKET_AREA = 4096
"""Queries times keys of padding that cost about as much as one more call of the kernel."""


def round_up(length: int) -> int:
    """`length` rounded up to whole vectors of the attention kernel.

    Its sums then run over the same lanes however long the padding, so learner and engine round alike.
    """
    return -(-length // 32) * 32


@dataclass(frozen=True, slots=True)
class Bucket:
    """R segments of like size as a grid of Q queries by K keys, padded on the right."""

    queries: Tensor
    """(R * Q,) int64 packed token of each query; padding repeats one."""
    keys: Tensor
    """(R * K,) int64 packed token of each key; padding repeats one."""
    tokens: Tensor
    """(n,) int64 the packed tokens whose queries these are."""
    inside: Tensor
    """(n,) int64 place of each in the (R * Q) grid."""
    padding: Tensor | None
    """Places of the grid that hold no token; None without."""
    rows: int
    bias: Tensor | None
    """(R, 1, Q, K) 0 or -inf, in the compute dtype; None where the causal mask alone is right."""

    @property
    def is_causal(self) -> bool:
        """Whether queries and keys are the same tokens."""
        return self.bias is None

    def forbidden(self) -> Tensor:
        """(R or 1, Q, K) bool: where a query must not look."""
        if self.bias is not None:
            return self.bias[:, 0] != 0
        size = len(self.queries) // self.rows
        return torch.ones(1, size, size, dtype=torch.bool, device=self.queries.device).triu_(1)


def buckets(tree: Tree, *, dtype: torch.dtype, device: torch.device, trunk: int = 0) -> list[Bucket]:
    """The segments of `tree` in grids that waste little: roots by themselves, the others with a mask.

    The first `trunk` packed tokens are keys only: their segment is left out, and queries are counted from them.
    """
    segments = [s for s in tree.segments if s.start >= trunk]
    parts = ([s for s in segments if s.depth == 0], [s for s in segments if s.depth > 0])
    return [_bucket(tree, group, dtype, device, trunk) for part in parts for group in _alike(part)]


def _area(segments: Iterable[Segment]) -> int:
    members = list(segments)
    longest = max(round_up(s.length + s.depth) for s in members)
    return len(members) * max(round_up(s.length) for s in members) * longest


def _alike(segments: list[Segment]) -> list[list[Segment]]:
    """Segments in groups whose padding costs less than a group more would."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (s.length + s.depth, s.length), reverse=True):
        if groups and _area([*groups[-1], segment]) <= _area(groups[-1]) + _area([segment]) + _BUCKET_AREA:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _bucket(
    tree: Tree, segments: list[Segment], dtype: torch.dtype, device: torch.device, trunk: int
) -> Bucket:
    lengths = np.array([s.length for s in segments])
    depths = np.array([s.depth for s in segments])
    rows, num_keys = len(segments), round_up(int((lengths + depths).max()))
    is_causal = not depths.any()
    num_queries = num_keys if is_causal else round_up(int(lengths.max()))
    keys = np.zeros((rows, num_keys), np.int64)
    queries = np.zeros((rows, num_queries), np.int64)
    for row, segment in enumerate(segments):
        line = tree.ancestry(segment)
        keys[row, : len(line)] = line
        queries[row, : segment.length] = line[segment.depth :] - trunk
    taken = np.arange(num_queries) < lengths[:, None]
    bias = None
    if not is_causal:
        last = torch.from_numpy(depths)[:, None] + torch.arange(num_queries)  # the newest key a query sees
        beyond = torch.arange(num_keys) > last[:, :, None]
        bias = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, float("-inf"))[:, None].to(device)

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Bucket(
        queries=put(queries.reshape(-1)),
        keys=put(keys.reshape(-1)),
        tokens=put(queries[taken]),
        inside=put(np.flatnonzero(taken)),
        padding=None if taken.all() else put(np.flatnonzero(~taken)),
        rows=rows,
        bias=bias,
    )


@dataclass(frozen=True)
class Layout:
    """Who attends to whom, as the two kinds of kernel want it: each form is made when it is first used.

    The first `trunk` packed tokens of `tree` are keys only, and queries are counted from them.
    """

    tree: Tree
    dtype: torch.dtype
    device: torch.device
    trunk: int = 0

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Padded grids."""
        return buckets(self.tree, dtype=self.dtype, device=self.device, trunk=self.trunk)

    @cached_property
    def spans(self) -> native.Spans:
        """Segments and their keys, without padding."""
        return native.Spans.of(self.tree, trunk=self.trunk)


def _is_native(query: Tensor) -> bool:
    return native.fits(query.dtype, query.device, head_dim=query.shape[2])


def _grid(x: Tensor, slots: Tensor, rows: int) -> Tensor:
    """(M, heads, D) to (rows, heads, length, D)."""
    return x.index_select(0, slots).view(rows, -1, *x.shape[1:]).transpose(1, 2)


def _plain(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    out = query.new_zeros(query.shape)
    for bucket in layout.buckets:
        keys, values = (_key_grid(x, bucket) for x in (key, value))
        repeats = query.shape[1] // key.shape[1]
        if not _takes_shared_heads(bucket, query.device):
            keys, values, repeats = (
                keys.repeat_interleave(repeats, 1),
                values.repeat_interleave(repeats, 1),
                1,
            )
        grid = F.scaled_dot_product_attention(
            _grid(query, bucket.queries, bucket.rows),
            keys,
            values,
            attn_mask=bucket.bias,
            is_causal=bucket.is_causal,
            enable_gqa=repeats > 1,
        )
        out = out.index_copy(0, bucket.tokens, grid.transpose(1, 2).flatten(0, 1)[bucket.inside])
    return out


def _key_grid(x: Tensor, bucket: Bucket) -> Tensor:
    """Keys or values of `bucket`, (rows, kv_heads, K, D)."""
    if bucket.is_causal or not x.requires_grad:
        return _grid(x, bucket.keys, bucket.rows)
    # by way of float32, in which a shared prompt's keys then gather their gradient from every completion
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return _grid(wide, bucket.keys, bucket.rows).to(x.dtype)


def _takes_shared_heads(bucket: Bucket, device: torch.device) -> bool:
    """Whether a fused kernel takes fewer key heads than query heads: on a GPU none that takes a mask does."""
    return bucket.is_causal or device.type == "cpu"


def _with_normalisers(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The CPU's flash kernel: (M, heads, D) results and (M, heads) normalisers."""
    repeats = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    normalisers = torch.empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for bucket in layout.buckets:
        grids = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _grid(query, bucket.queries, bucket.rows),
            _grid(key, bucket.keys, bucket.rows).repeat_interleave(repeats, 1),
            _grid(value, bucket.keys, bucket.rows).repeat_interleave(repeats, 1),
            0.0,
            bucket.is_causal,
            attn_mask=bucket.bias,
        )
        for whole, grid in zip((out, normalisers), grids, strict=True):
            flat = grid.transpose(1, 2).reshape(-1, *whole.shape[1:])
            whole.index_copy_(0, bucket.tokens, flat if bucket.padding is None else flat[bucket.inside])
    return out, normalisers


class _Attention(torch.autograd.Function):
    """Forwards by a kernel; keeps queries, keys, values and one normaliser per query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
        if _is_native(query):
            out, normalisers = native.attend_segments(query, key, value, layout.spans)
        else:
            out, normalisers = _with_normalisers(query, key, value, layout)
        ctx.save_for_backward(query, key, value, out, normalisers)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        query, key, value, out, normalisers = ctx.saved_tensors
        if _is_native(query):
            given = query, key, value, out, normalisers, grad
            grad_query, *others = native.attend_segments_backward(*given, ctx.layout.spans)
            grad_key, grad_value = (g.to(key.dtype) for g in others)
            return grad_query, grad_key, grad_value, None
        precise = torch.promote_types(key.dtype, torch.float32)
        grad_query = torch.empty_like(query)
        # in float32: a shared prompt's keys gather a term from every completion
        grad_key, grad_value = (torch.zeros(x.shape, dtype=precise) for x in (key, value))
        for bucket in ctx.layout.buckets:
            rows = bucket.rows
            grids = [_grid(x, bucket.queries, rows) for x in (query, out, grad)]
            if bucket.padding is not None:
                grids[2].transpose(1, 2).flatten(0, 1).index_fill_(0, bucket.padding, 0.0)
            keys, values = _grid(key, bucket.keys, rows), _grid(value, bucket.keys, rows)
            normaliser = normalisers.index_select(0, bucket.queries).unflatten(0, (rows, -1)).transpose(1, 2)
            short = keys.shape[2] <= _DENSE_KEYS
            parts = (_dense_backward if short else _kernel_backward)(*grids, keys, values, normaliser, bucket)
            flat = parts[0].transpose(1, 2).reshape(-1, *query.shape[1:])
            grad_query.index_copy_(0, bucket.tokens, flat if bucket.padding is None else flat[bucket.inside])
            grad_key.index_add_(0, bucket.keys, parts[1].transpose(1, 2).flatten(0, 1).to(precise))
            grad_value.index_add_(0, bucket.keys, parts[2].transpose(1, 2).flatten(0, 1).to(precise))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _kernel_backward(
    query: Tensor, out: Tensor, grad: Tensor, key: Tensor, value: Tensor, normaliser: Tensor, bucket: Bucket
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = key.shape[1]
    repeats = query.shape[1] // kv_heads
    grad_query, grad_key, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad,
        query,
        key.repeat_interleave(repeats, 1),
        value.repeat_interleave(repeats, 1),
        out,
        normaliser.contiguous(),
        0.0,
        bucket.is_causal,
        attn_mask=bucket.bias,
    )
    return grad_query, *(g.unflatten(1, (kv_heads, repeats)).sum(2) for g in (grad_key, grad_value))


def _dense_backward(
    query: Tensor, out: Tensor, grad: Tensor, key: Tensor, value: Tensor, normaliser: Tensor, bucket: Bucket
) -> tuple[Tensor, Tensor, Tensor]:
    """P = exp(q k / sqrt(D) - normaliser); dV = P' dO, dS = P (dO V' - rowsum(dO O)), dQ = dS K, dK = dS' Q.

    The query heads of one key head are taken together. Scores are float32 (float64 for float64), so that P is
    the forward pass's; the other products take the compute dtype.
    """
    rows, heads, num_queries, size = query.shape
    kv_heads, num_keys = key.shape[1:3]
    repeats = heads // kv_heads
    precise = torch.promote_types(query.dtype, torch.float32)
    scale = size**-0.5

    def by_key_head(x: Tensor) -> Tensor:
        return x.reshape(rows * kv_heads, repeats * num_queries, -1)

    q, do, k, v = by_key_head(query), by_key_head(grad), key.flatten(0, 1), value.flatten(0, 1)
    centre = by_key_head((grad.to(precise) * out).sum(-1, keepdim=True))
    shift = by_key_head(normaliser.to(precise).reshape(rows, heads, num_queries, 1))
    weights = torch.baddbmm(shift, q.to(precise) * scale, k.to(precise).transpose(1, 2), beta=-1).exp_()
    weights.view(rows, kv_heads, repeats, num_queries, num_keys).masked_fill_(
        bucket.forbidden()[:, None, None], 0.0
    )
    grad_value = torch.bmm(weights.to(q.dtype).transpose(1, 2), do)
    grad_scores = torch.bmm(do, v.transpose(1, 2))
    torch.mul(torch.sub(grad_scores, centre), weights, out=grad_scores)
    grad_query = torch.bmm(grad_scores, k).mul_(scale)
    grad_key = torch.bmm(grad_scores.transpose(1, 2), q).mul_(scale)
    return (
        grad_query.view(rows, heads, num_queries, size),
        grad_key.view(rows, kv_heads, num_keys, size),
        grad_value.view(rows, kv_heads, num_keys, size),
    )


def attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """(M, heads, D): each query over its segment's earlier tokens, itself, and its ancestors' tokens.

    query is (M, heads, D), key and value (M, kv_heads, D), in the packed order of the tree that `layout` is of;
    with a trunk, its keys and values come before those of the M tokens.
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
        return _Attention.apply(query, key, value, layout)  # type: ignore[no-any-return]
    if _is_native(query):
        return native.attend_segments(query, key, value, layout.spans)[0]
    return _plain(query, key, value, layout)
