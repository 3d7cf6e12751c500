"""What the backward pass makes again: the same bits, from less memory."""

from __future__ import annotations

import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Olmo2Config, Olmo2ForCausalLM

from posttrain.config.lora import LoRA
from posttrain.config.sizing_layer import layer_bytes
from posttrain.config.sizing_model import ModelShape
from posttrain.model import decoder as decoders
from posttrain.model.decoder import Decoder
from posttrain.model.lora import adapt
from posttrain.model.native.build import library
from posttrain.model.remade import Remade, not_kept

HIDDEN, WIDE, HEADS, KV_HEADS = 64, 128, 4, 2
LENGTHS = (40, 24)


def model(family: str, layers: int = 2):
    torch.manual_seed(5)
    config, kind = (LlamaConfig, LlamaForCausalLM) if family == "llama" else (Olmo2Config, Olmo2ForCausalLM)
    return kind(
        config(
            vocab_size=50,
            hidden_size=HIDDEN,
            intermediate_size=WIDE,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=64,
            initializer_range=0.2,
            pad_token_id=None,
        )
    ).train()


def packed() -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    ids = torch.randint(0, 50, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return ids, torch.cat([torch.arange(n) for n in LENGTHS]), LENGTHS


def gradients(module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    module.zero_grad()
    Decoder(module, compute_dtype=dtype).hidden(*packed()).float().square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_gradients_are_those_of_what_is_kept_to_the_bit(family, dtype, adapted, monkeypatch):
    module = model(family)
    if adapted:
        module = adapt(module, LoRA(rank=2, targets=("q_proj", "up_proj", "down_proj")), seed=3)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    found = gradients(module, dtype)
    monkeypatch.setattr(decoders, "not_kept", lambda values: nullcontext())
    expected = gradients(module, dtype)
    assert found.keys() == expected.keys() and len(found) >= 6
    for name, gradient in expected.items():
        assert gradient.any() and torch.equal(found[name], gradient), name


def kept_bytes(family: str, layers: int, dtype: torch.dtype) -> int:
    """Bytes that a forward pass leaves allocated, by PyTorch's own count."""
    decoder, given = Decoder(model(family, layers), compute_dtype=dtype), packed()
    with torch.profiler.profile(profile_memory=True) as profile:
        out = decoder.hidden(*given)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


@pytest.mark.skipif(library() is None, reason="PyTorch's attention keeps other tensors than the kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_layer_keeps_what_the_plan_says(family, dtype):
    """Nothing that can be made again; and no weight in the compute dtype."""
    shape = ModelShape(HIDDEN, 2, HEADS, KV_HEADS, WIDE, 50, HIDDEN // HEADS, True, family)
    planned = sum(LENGTHS) * layer_bytes(shape, None, dtype.itemsize, on_cpu=True)
    found = kept_bytes(family, 3, dtype) - kept_bytes(family, 2, dtype)
    assert found == pytest.approx(planned, rel=0.02)


def test_a_value_is_made_once_for_all_its_readers():
    x = torch.randn(6, 8, requires_grad=True)
    weights = [torch.randn(3, 8, requires_grad=True) for _ in range(2)]
    made = []

    def make() -> torch.Tensor:
        made.append(x.detach().sin())
        return made[-1]

    def gradients_of(context) -> list[torch.Tensor]:
        value = x.sin()
        with context(value):
            outs = [F.linear(value, weight) for weight in weights]
        return list(torch.autograd.grad(sum(out.square().sum() for out in outs), [x, *weights]))

    found = gradients_of(lambda value: not_kept([Remade(value, make)]))
    assert len(made) == 1
    for one, other in zip(found, gradients_of(lambda value: nullcontext()), strict=True):
        assert torch.equal(one, other)


def test_a_value_is_dropped_after_its_last_reader():
    remade = Remade(torch.ones(3), lambda: torch.ones(3))
    remade.expect_reader()
    remade.expect_reader()
    held = weakref.ref(remade.read())
    assert held() is not None
    remade.read()
    assert held() is None
