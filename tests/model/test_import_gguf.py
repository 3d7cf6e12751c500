"""A GGUF file written here, tensor by tensor, comes back as the model it was made from."""

from __future__ import annotations

import json

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ModelError
from posttrain.model.import_gguf import import_gguf
from posttrain.model.tiny import tiny_llama

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight, num_heads):
    """llama.cpp's row order: within a head, row 2i is the old row i, and row 2i+1 the old row i + d/2."""
    d = weight.shape[0] // num_heads
    old_rows = [
        head * d + i + half * (d // 2) for head in range(num_heads) for i in range(d // 2) for half in (0, 1)
    ]
    return weight[old_rows]


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, kind = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[kind]}.weight"
    return f"{NAMES[stem]}.weight"


def write_gguf(path, model, tokenizer, *, quantise=None, architecture="llama", pre="smollm", extra=()):
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(500.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    core = tokenizer.backend_tokenizer
    tokens = [core.id_to_token(i) for i in range(core.get_vocab_size())]
    special = set(tokenizer.get_added_vocab())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in name:
            weight = interleaved(weight, config.num_attention_heads)
        if "k_proj" in name:
            weight = interleaved(weight, config.num_key_value_heads)
        values = weight.numpy()
        if quantise is not None and values.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quantize(values, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(gguf_name(name), values)
    for name in extra:
        writer.add_tensor(name, numpy.ones(32, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def source(request, tmp_path):
    rope = {"rope_type": "default", "rope_theta": 500.0}
    folder = tiny_llama(tmp_path / "source", tied=request.param, rope_parameters=rope, rms_norm_eps=2e-5)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def logits(model):
    ids = torch.arange(0, 320, 7)[None]
    with torch.no_grad():
        return model.eval()(ids).logits


def test_unquantised_file_gives_the_same_logits(source, tmp_path):
    """Rotary order, grouped key heads, rope base, epsilon and tying: any of them wrong moves the logits."""
    model, tokenizer = source
    path = write_gguf(tmp_path / "model.gguf", model, tokenizer)
    folder = import_gguf(path, tmp_path / "out", base_model="tiny")
    imported = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(imported), logits(model), rtol=0, atol=1e-5)
    assert imported.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert imported.config.rms_norm_eps == 2e-5


def test_quantised_file_gives_exactly_the_dequantised_values(source, tmp_path):
    """Q8_0 is a float16 scale per 32 values times an 8-bit integer, written out here."""
    model, tokenizer = source
    path = write_gguf(tmp_path / "model.gguf", model, tokenizer, quantise=gguf.GGMLQuantizationType.Q8_0)
    folder = import_gguf(path, tmp_path / "out", base_model="tiny")
    stored = AutoModelForCausalLM.from_pretrained(folder).state_dict()["model.layers.0.mlp.up_proj.weight"]
    blocks = model.state_dict()["model.layers.0.mlp.up_proj.weight"].numpy().reshape(-1, 32)
    scale = numpy.abs(blocks).max(axis=1, keepdims=True) / numpy.float32(127)
    integers = numpy.round(blocks / scale)
    expected = scale.astype(numpy.float16).astype(numpy.float32) * integers
    difference = numpy.abs(stored.numpy().reshape(-1, 32) - expected)
    assert (difference == 0).mean() > 0.99, "beyond ties in rounding, the values are those of the format"
    assert difference.max() <= scale.max() * 1.01


def test_tokenizer_and_template_come_along(source, tmp_path):
    model, tokenizer = source
    folder = import_gguf(
        write_gguf(tmp_path / "m.gguf", model, tokenizer), tmp_path / "out", base_model="tiny"
    )
    imported = AutoTokenizer.from_pretrained(folder)
    for text in ("The answer", " naïve 中🙂\n\n", "<|im_start|>user\nHi<|im_end|>\n"):
        assert imported(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert imported.get_vocab() == tokenizer.get_vocab()
    assert imported.chat_template == tokenizer.chat_template
    assert imported.pad_token_id == imported.eos_token_id == tokenizer.eos_token_id
    assert imported.model_max_length == 512


def test_digits_stand_alone_where_the_model_was_trained_so(source, tmp_path):
    """llama.cpp splits `\\p{N}` first for "smollm", and not at all for "gpt-2"."""
    model, tokenizer = source
    pieces = {}
    for pre in ("smollm", "gpt-2"):
        path = write_gguf(tmp_path / f"{pre}.gguf", model, tokenizer, pre=pre)
        imported = AutoTokenizer.from_pretrained(import_gguf(path, tmp_path / pre, base_model="tiny"))
        split = imported.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
        pieces[pre] = [piece for piece, _ in split]
    assert pieces == {"smollm": ["a", "ĠĠ", "1", "2"], "gpt-2": ["a", "Ġ", "Ġ12"]}


def test_what_cannot_be_imported_is_said(source, tmp_path):
    model, tokenizer = source
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"not a model at all" * 10)
    cases = {
        "not a GGUF file": damaged,
        "no Llama model has": write_gguf(
            tmp_path / "a", model, tokenizer, extra=["blk.0.ffn_gate_inp.weight"]
        ),
        r"tokenizer \(gpt2, qwen2\)": write_gguf(tmp_path / "b", model, tokenizer, pre="qwen2"),
        "has no llama.": write_gguf(tmp_path / "c", model, tokenizer, architecture="phi3"),
    }
    for sentence, path in cases.items():
        with pytest.raises(ModelError, match=sentence):
            import_gguf(path, tmp_path / "out", base_model="tiny")
    assert not (tmp_path / "out").exists()
