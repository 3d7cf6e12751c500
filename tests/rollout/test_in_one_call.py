"""All layers in one call: the bits of the kernels one by one, however rows and outputs are shared among threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from posttrain.model.decoder import Angles, Shape
from posttrain.model.load import load_model
from posttrain.model.native import build, product
from posttrain.model.native.newest import Lines, Trunk
from posttrain.model.tiny import tiny_llama, tiny_olmo2
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.forward import decode
from posttrain.rollout.engine.weights import EngineWeights

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no kernels: {build.status()}")
SIZES = {
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 352,
}
FAMILIES = {"llama": tiny_llama, "olmo2": tiny_olmo2}
CPU = torch.device("cpu")


@pytest.fixture(
    scope="module", params=[(f, d) for f in FAMILIES for d in (torch.float32, torch.bfloat16)], ids=str
)
def model(request, tmp_path_factory):
    """Shape, angles and weights."""
    family, dtype = request.param
    if not product.fits(torch.zeros(192, 192, dtype=dtype)):
        pytest.skip("such products are PyTorch's on this processor")
    module = load_model(
        FAMILIES[family](tmp_path_factory.mktemp("m") / "m", **SIZES), dtype=dtype, device=CPU
    )
    shape = Shape.of(module.config)
    norms = {name: 1 + 0.3 * torch.randn_like(x) for name, x in module.state_dict().items() if "norm" in name}
    weights = EngineWeights.of(module.state_dict() | norms, shape, dtype=dtype, device=CPU, rows=8)
    assert weights.in_one_call is not None
    return shape, Angles(module.config, CPU), weights


def crowd(
    shape: Shape, dtype: torch.dtype, rows: int
) -> tuple[Cache, tuple[list[Trunk | None], list[int], list[int]]]:
    """So many samples, two in three with a trunk that others have, in slots of any order, each with a past; what
    `Lines` are made of.
    """
    cache = Cache(shape, dtype=dtype, device=CPU)
    assert cache.is_blocked
    cache.reserve(rows, 96)
    for x in (cache.keys, cache.values):
        x.copy_(torch.randn(x.shape))
    size = shape.num_layers, shape.num_kv_heads, 64, shape.head_dim
    starts = [None, *(cache.trunk(*torch.randn(2, *size).to(dtype)) for _ in range(2))]
    trunks: list[Trunk | None] = [starts[int(i)] for i in torch.randint(3, (rows,))]
    lengths = [(64 if t else 0) + int(n) for t, n in zip(trunks, torch.randint(1, 97, (rows,)), strict=True)]
    return cache, (trunks, torch.randperm(rows).tolist(), lengths)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7, 30, 80])
def test_logits_and_cache_are_those_of_the_kernels_one_by_one(model, rows, threads, monkeypatch):
    """80 rows are shared by rows among up to three threads, 30 by one alone, fewer by outputs."""
    shape, angles, weights = model
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    cache, places = crowd(shape, weights.embedding.dtype, rows)
    lines, lengths = Lines(*places), places[2]
    before = cache.keys.clone(), cache.values.clone()
    ids = torch.randint(shape.vocab, (rows,))
    found = {}
    for own in (weights, replace(weights, in_one_call=None)):
        cache.keys.copy_(before[0]), cache.values.copy_(before[1])
        logits = decode(
            own, shape, angles, ids, torch.tensor(lengths), cache, longest=max(lengths), lines=lines
        )
        found[own.in_one_call is None] = logits, cache.keys.clone(), cache.values.clone()
    assert not torch.equal(found[True][1], before[0]), "newest keys joined the cache"
    for one, other in zip(found[False], found[True], strict=True):
        assert torch.equal(one, other)


def test_a_row_does_not_depend_on_the_others(model):
    """Each of 80 samples alone, to the bit."""
    shape, angles, weights = model
    cache, places = crowd(shape, weights.embedding.dtype, 80)
    lengths = places[2]
    before = cache.keys.clone(), cache.values.clone()
    ids = torch.randint(shape.vocab, (80,))

    def logits(rows: list[int]) -> torch.Tensor:
        cache.keys.copy_(before[0]), cache.values.copy_(before[1])
        counts = torch.tensor(lengths)[rows]
        lines = Lines(*([part[row] for row in rows] for part in places))
        return decode(
            weights, shape, angles, ids[rows], counts, cache, longest=int(counts.max()), lines=lines
        )

    together = logits(list(range(80)))
    for row in range(0, 80, 13):
        assert torch.equal(logits([row])[0], together[row])
    assert torch.equal(logits([5, 70, 3, 41]), together[[5, 70, 3, 41]])
