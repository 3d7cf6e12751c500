"""A training pass on a device that is not the CPU: without numbers, but nothing made along the way may stay behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from posttrain.model import attention as module
from posttrain.model.attention import Layout, _plain
from posttrain.model.decoder import Decoder
from posttrain.model.logprobs import token_logprobs
from posttrain.model.tree import plant

META, CPU = torch.device("meta"), torch.device("cpu")
PROMPT = 40


def group(completions: int) -> tuple[np.ndarray, list[int]]:
    """Ids and lengths of one prompt's completions, of 3, 4, 5 ... tokens."""
    rows = [[*range(PROMPT), 100 + i, *range(2 + i)] for i in range(completions)]
    return np.concatenate([np.asarray(row) for row in rows]), [len(row) for row in rows]


@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_olmo2_dir"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_layers_and_log_probabilities(family, dtype, request):
    """Rows that share a start, forwards and backwards, through every operation of the learner's pass."""
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(family), dtype=torch.float32)
    model.to(META)
    decoder = Decoder(model, compute_dtype=dtype)
    ids, lengths = group(3)
    tree = plant(ids, lengths)
    assert len(tree.segments) == 4
    layout = Layout(tree, dtype, META)
    x = torch.empty(len(tree.tokens), decoder.shape.hidden, device=META, requires_grad=True)
    cos, sin = decoder._angles.at(torch.empty(len(tree.tokens), dtype=torch.int64, device=META), dtype)
    hidden = x
    for layer in decoder.layers():
        hidden = decoder._layer(layer, hidden, cos, sin, layout)
    targets = torch.empty(5, dtype=torch.int64, device=META)
    nats = token_logprobs(hidden[:5].to(dtype), decoder.head_weight, targets)
    nats.sum().backward()
    assert (nats.shape, nats.device, nats.dtype) == ((5,), META, torch.float32)
    assert (x.grad.shape, x.grad.device) == (x.shape, META)
    used = {n: p for n, p in model.named_parameters() if "embed" not in n and n != "model.norm.weight"}
    assert all(p.grad is not None and p.grad.device == META for p in used.values())


def test_heads_that_are_repeated_change_nothing(monkeypatch):
    """What a GPU is given where rows share a start, on the CPU: values and gradients of nine heads on three keys'."""
    ids, lengths = group(5)
    tree = plant(ids, lengths)
    found = []
    for is_shared in (True, False):
        monkeypatch.setattr(module, "_takes_shared_heads", lambda *_, is_shared=is_shared: is_shared)
        stream = torch.Generator().manual_seed(3)
        made = [torch.randn(len(tree.tokens), h, 8, generator=stream).requires_grad_() for h in (9, 3, 3)]
        out = _plain(*made, Layout(tree, torch.float32, CPU))
        found.append([out, *torch.autograd.grad(out.square().sum(), made)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class Gathered(TorchDispatchMode):
    """Notes the dtype of every sum into places."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "index_add" in str(func):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_the_gradient_of_a_shared_start_is_gathered_in_float32():
    """A GPU adds bfloat16 numbers one by one, rounding each time: of 48 completions little would be left."""
    ids, lengths = group(48)
    tree = plant(ids, lengths)
    made = [torch.randn(len(tree.tokens), h, 8).bfloat16().requires_grad_() for h in (4, 2, 2)]
    out = _plain(*made, Layout(tree, torch.bfloat16, CPU))
    with Gathered() as gathered:
        out.sum().backward()
    # the keys and the values of the completions; those of the prompt itself and all queries have one term each
    assert gathered.dtypes.count(torch.float32) == 2
    assert all(x.grad.dtype == torch.bfloat16 for x in made)
