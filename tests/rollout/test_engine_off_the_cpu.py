"""The engine's parts on a device that is not the CPU: without numbers, but a tensor left behind is an error there,
and so is reading one back.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posttrain.model.decoder import Angles, Shape
from posttrain.rollout.engine.cache import Cache
from posttrain.rollout.engine.draw import draw
from posttrain.rollout.engine.forward import prefill
from posttrain.rollout.engine.step import PlainSteps, SteadySteps
from posttrain.rollout.engine.weights import EngineWeights
from posttrain.rollout.sampler import Sampling

META = torch.device("meta")


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def weights(policy, request) -> EngineWeights:
    state = {name: weight.to(META) for name, weight in policy.model.state_dict().items()}
    shape = Shape.of(policy.model.config)
    return EngineWeights.of(state, shape, dtype=request.param, device=META, rows=4)


@pytest.mark.parametrize("kind", [PlainSteps, SteadySteps])
def test_a_step_reads_nothing_back(policy, weights, kind):
    """So that a graph can hold it."""
    config, dtype = policy.model.config, weights.embedding.dtype
    cache = Cache(Shape.of(config), dtype=dtype, device=META)
    steps = kind(Shape.of(config), Angles(config, META), cache, META)
    steps.load(weights)
    steps.reserve(3, 30, longest=60, most_rows=lambda: 5)
    logits = steps([5, 6, 7], [30, 2, 17], [None] * 3)
    assert (logits.shape, logits.dtype, logits.device) == ((3, config.vocab_size), dtype, META)


def test_prefill(policy, weights):
    """Prompts with a start in common, then one that goes on from what was kept."""
    config = policy.model.config
    model = weights, Shape.of(config), Angles(config, META)
    logits, held = prefill(*model, [(*range(30), 40 + i, *range(i)) for i in range(3)])
    assert (logits.shape, logits.device) == ((3, config.vocab_size), META)
    logits, (own,) = prefill(*model, [(*range(29), 7, 8)], before=held[-1])
    assert (own.keys.shape[2], own.keys.device, logits.device) == (31, META, META)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_p=0.9, top_k=20)])
@pytest.mark.parametrize("rows", [1, 40])
def test_drawing(sampling, rows):
    logits = torch.empty(rows, 608, dtype=torch.bfloat16, device=META)
    found = draw(logits, sampling, torch.from_numpy(np.zeros(rows, np.int64)).to(META))
    assert [(x.shape, x.device) for x in found] == [((rows,), META)] * 2


def test_such_faults_are_found():
    x = torch.empty(4, device=META)
    with pytest.raises(RuntimeError, match="device"):
        x + torch.empty(4)
    with pytest.raises(RuntimeError, match=r"item\(\)"):
        bool((x > 0).all())
