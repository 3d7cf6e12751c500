"""The tiny models are what their docstrings say, every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.model.fingerprint import fingerprint, hash_files
from posttrain.model.tiny import tiny_llama, tiny_olmo2, tiny_tokenizer

DIALOGUE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
]


ELSEWHERE = """
import sys, pathlib, posttrain.model.tiny as tiny
for name in ("tiny_llama", "tiny_olmo2"):
    getattr(tiny, name)(pathlib.Path(sys.argv[1]) / name, seed=3)
"""


def test_same_arguments_same_bytes_in_another_process(tmp_path):
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path / "there")], check=True)
    for write in (tiny_llama, tiny_olmo2):
        here = hash_files(write(tmp_path / "here" / write.__name__, seed=3))
        assert hash_files(tmp_path / "there" / write.__name__) == here
        assert "model.safetensors" in here


def test_seed_changes_the_weights_and_nothing_else_but_the_record(tmp_path):
    one, two = (hash_files(tiny_llama(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert {name for name in one if one[name] != two[name]} == {"model.safetensors", "posttrain.json"}
    assert fingerprint(tmp_path / "0") != fingerprint(tmp_path / "1")


def test_writing_leaves_the_callers_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny_llama(tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("write", "tied_by_default", "kind"),
    [(tiny_llama, True, "LlamaForCausalLM"), (tiny_olmo2, False, "Olmo2ForCausalLM")],
)
def test_shape_is_as_documented(write, tied_by_default, kind, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(write(tmp_path / "model"))
    config = model.config
    assert type(model).__name__ == kind
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 32, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert (config.vocab_size, config.max_position_embeddings) == (320, 512)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied_by_default
    other = AutoConfig.from_pretrained(
        write(tmp_path / "other", tied=not tied_by_default, num_hidden_layers=3)
    )
    assert (other.tie_word_embeddings, other.num_hidden_layers) == (not tied_by_default, 3)


def test_llama_speaks_chatml_with_a_default_system_prompt(tiny_llama_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    assert tokenizer.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a tiny model for tests.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_olmo2_speaks_tulu_behind_one_bos(tiny_olmo2_dir):
    """The Tülu template behind `bos_token`, as OLMo 2 was trained; the tokenizer adds no second BOS."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_olmo2_dir)
    rendered = tokenizer.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|endoftext|><|user|>\nHi\n<|assistant|>\nYo<|endoftext|>\n<|user|>\nBye\n<|assistant|>\n"
    )
    ids = tokenizer(rendered)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert ids[1] != tokenizer.bos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


TOKENIZER = tiny_tokenizer(["<|im_end|>"], eos_token="<|im_end|>")


@given(st.text())
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < 320 for i in ids)


def test_merges_shorten_english():
    text = "What is the answer?"
    assert len(TOKENIZER(text)["input_ids"]) < len(text) * 0.7


def test_folder_is_whole(tiny_llama_dir: Path):
    assert {path.name for path in tiny_llama_dir.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "posttrain.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
