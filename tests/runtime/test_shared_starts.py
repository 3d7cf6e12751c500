"""Computing a common start once changes neither losses nor gradients: plain Hugging Face passes, row by row, agree."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from posttrain.data.pack import collate
from posttrain.model import decoder as decoder_module
from posttrain.model.tree import plant
from posttrain.records import Row
from posttrain.runtime.local import LocalLearner


def make_rows(kind: str) -> list[Row]:
    """Groups of a prompt (policy optimization), pairs (preferences), chats with one system message."""
    stream = np.random.default_rng(4)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(stream.integers(3, 300, count).tolist())

    if kind == "groups":
        shapes = [(prompt, tokens(3 + 5 * i)) for prompt in (tokens(40), tokens(21)) for i in range(4)]
    elif kind == "pairs":
        shapes = [(prompt, tokens(9 + i)) for prompt in (tokens(25), tokens(70), tokens(3)) for i in range(2)]
    else:
        system = tokens(20)
        shapes = [(system + tokens(5 + 3 * i), tokens(10)) for i in range(5)]
    return [
        Row(str(i), prompt + own, (False,) * len(prompt) + (True,) * len(own))
        for i, (prompt, own) in enumerate(shapes)
    ]


def weighted_loss(logprobs, batch):
    """A different weight on every target, so that no two may be mixed up."""
    weights = torch.linspace(0.5, 1.5, int(batch.mask.sum()))
    loss = -(logprobs[batch.mask] * weights).mean()
    return loss, {"loss": loss.detach()}


@pytest.mark.parametrize("kind", ["groups", "pairs", "chats"])
@pytest.mark.parametrize("family", ["tiny_llama_dir", "tiny_olmo2_dir"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_row_by_row(kind, family, checkpointing, request):
    module = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(family), dtype=torch.float32).eval()
    plain = copy.deepcopy(module)
    rows = make_rows(kind)
    learner = LocalLearner(module, compute_dtype=torch.float32, gradient_checkpointing=checkpointing)
    found = learner.forward_backward(collate(rows), weighted_loss)["loss"]

    chosen = []
    for row in rows:
        ids = torch.tensor(row.ids)
        nats = F.log_softmax(plain(ids[None]).logits[0, :-1], 1).gather(1, ids[1:, None])[:, 0]
        chosen.append(nats[torch.tensor(row.mask[1:])])
    nats = torch.cat(chosen)
    expected = -(nats * torch.linspace(0.5, 1.5, len(nats))).mean()
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    theirs = dict(plain.named_parameters())
    for name, parameter in module.named_parameters():
        bound = 1e-5 * float(theirs[name].grad.abs().max())
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=bound, msg=name)


@pytest.mark.parametrize("kind", ["groups", "pairs", "chats"])
def test_fewer_tokens_go_through_the_layers(kind, tiny_llama_dir, monkeypatch):
    """The trie's tokens, not the rows', reach the embedding."""
    module = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    learner = LocalLearner(module, compute_dtype=torch.float32)
    counts = []
    embed = F.embedding
    monkeypatch.setattr(F, "embedding", lambda ids, weight: counts.append(len(ids)) or embed(ids, weight))
    rows = make_rows(kind)
    learner.logprobs(collate(rows))
    with monkeypatch.context() as without:
        without.setattr(decoder_module, "plant", partial(plant, min_shared=10**6))
        learner.logprobs(collate(rows))
    total = sum(len(row.ids) for row in rows)
    saved = {"groups": 3 * 40 + 3 * 21, "pairs": 25 + 70, "chats": 4 * 20}[kind]
    assert counts == [total - saved, total]
