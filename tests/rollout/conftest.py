"""Engines over tiny models, and a model whose next token is certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from posttrain.data.render import Renderer
from posttrain.model.load import load_tokenizer
from posttrain.records import Completion
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampler import Request, Sampling
from posttrain.train.seeds import seed_of


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tiny matrices are slower on two threads than on one."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Policy:
    """A model with its renderer; read only."""

    model: PreTrainedModel
    renderer: Renderer

    def engine(self, **options) -> Engine:
        """An engine with this model's weights loaded, as version 0."""
        given = {"stop_ids": self.renderer.stop_ids, "decode": self.renderer.decode} | options
        engine = Engine(self.model.config, **given)
        engine.load(self.model.state_dict(), version=0)
        return engine

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        """(len(ids), V) float64 nats by the Hugging Face forward pass: row t is after ids[t]."""
        logits = self.model(torch.tensor([ids])).logits[0]
        return torch.log_softmax(logits.double() / temperature, 1)

    @torch.no_grad()
    def greedy(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[tuple[int, ...]]:
        """Hugging Face's greedy completions of left-padded prompts, up to and with a stop id."""
        longest = max(len(prompt) for prompt in prompts)
        pad = self.renderer.stop_ids[0]
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        attended = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = self.model.generate(
            ids,
            attention_mask=attended,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.renderer.stop_ids),
            pad_token_id=pad,
        )
        found = []
        for row in out[:, longest:].tolist():
            ends = [at for at, token in enumerate(row) if token in self.renderer.stop_ids]
            found.append(tuple(row[: ends[0] + 1] if ends else row))
        return found


@pytest.fixture(scope="session", params=["tiny_llama_dir", "tiny_olmo2_dir"])
def policy(request) -> Policy:
    """A tiny Llama, then a tiny OLMo 2, in float32, with norm weights that are not all one."""
    folder = request.getfixturevalue(request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)
    return Policy(model, Renderer(load_tokenizer(folder)))


CHAIN_HIDDEN = 64


@pytest.fixture(scope="session")
def id_of(tiny_llama_dir) -> Callable[[str], int]:
    """The tiny Llama's id of one token."""
    return load_tokenizer(tiny_llama_dir).convert_tokens_to_ids


@pytest.fixture
def chain(tiny_llama_dir) -> Callable[..., Engine]:
    """`chain(ids, **options)`: an engine that follows each of these distinct ids by the next, surely.

    Attention and MLP are off; id number i of them embeds as unit vector i, and the head of its successor
    reads that vector. After the last, and after any other token, every token is equally likely.
    """
    renderer = Renderer(load_tokenizer(tiny_llama_dir))

    def build(ids: Sequence[int], **options) -> Engine:
        assert len(set(ids)) == len(ids) <= CHAIN_HIDDEN
        config = LlamaConfig(
            vocab_size=320,
            hidden_size=CHAIN_HIDDEN,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
        )
        model = LlamaForCausalLM(config).requires_grad_(False)
        for part in (
            model.model.layers[0].self_attn.o_proj,
            model.model.layers[0].mlp.down_proj,
            model.model.embed_tokens,
            model.lm_head,
        ):
            part.weight.zero_()
        for place, (token, successor) in enumerate(zip(ids, [*ids[1:], None], strict=True)):
            model.model.embed_tokens.weight[token, place] = 1
            if successor is not None:
                model.lm_head.weight[successor, place] = 20
        engine = Engine(config, **({"stop_ids": renderer.stop_ids, "decode": renderer.decode} | options))
        engine.load(model.state_dict(), version=0)
        return engine

    return build


def crowd(num: int = 30) -> list[Request]:
    """Prompts of 1 to 71 tokens with groups of 1 to 4 samples."""
    generator = torch.Generator().manual_seed(4)
    lengths = [1, 33, 71, 2, 40, 5]
    return [
        Request(
            tuple(torch.randint(5, 300, (lengths[i % 6] + i // 6,), generator=generator).tolist()),
            tuple(seed_of(i, sample) for sample in range(1 + i % 4)),
        )
        for i in range(num)
    ]


@pytest.fixture(scope="session")
def requests() -> list[Request]:
    return crowd()


@pytest.fixture(scope="session")
def alone(policy, requests) -> list[list[Completion]]:
    """Each request by itself, each sample by itself, in an engine of one row."""
    engine = policy.engine(max_rows=1)
    sampling = Sampling(max_new_tokens=24)
    return [
        [engine.generate([Request(r.prompt_ids, (seed,))], sampling)[0][0] for seed in r.seeds]
        for r in requests
    ]
