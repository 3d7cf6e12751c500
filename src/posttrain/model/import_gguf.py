"""GGUF files of the Llama family to Hugging Face folders: weights dequantised, tokenizer rebuilt.

Weights are stored as float32, which holds each dequantised value (float16 scale times a small integer,
plus a float16 minimum) without loss; bfloat16 would round the values that the file stands for.
Left out: architectures other than `llama`, tokenizers other than byte-level BPE, scaled rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import ModelError
from posttrain.model.export import save_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig, PreTrainedTokenizerFast

Field = Callable[..., Any]
"""`field(key)` or `field(key, default)`: a value of the file's header."""

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_SPLITS_DIGITS = {"smollm": True, "starcoder": True, "gpt-2": False, "olmo": False}
"""Byte-level BPE flavours by `tokenizer.ggml.pre`: does each digit stand alone?

transformers' own GGUF reader ignores this key, and then tokenises e.g. two spaces before a digit otherwise
than the model was trained on.
"""
_SPECIAL = 3  # gguf.TokenType.CONTROL


def import_gguf(gguf_path: Path, folder: Path, *, base_model: str, base_revision: str | None = None) -> Path:
    """Write the model in `gguf_path` to `folder` as a float32 Hugging Face model; returns `folder`.

    ModelError when the file is damaged or of a kind this module leaves out.
    """
    import torch
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf_path)
    except ValueError as error:
        raise ModelError(f"{gguf_path.name} is not a GGUF file ({error})") from error

    def field(key: str, *default: Any) -> Any:
        if (found := reader.get_field(key)) is not None:
            return found.contents()
        if default:
            return default[0]
        raise ModelError(f"{gguf_path.name} has no {key} in its header")

    tokenizer = _tokenizer(field)
    weights = _weights(reader, field)
    return save_model(
        folder,
        config=_config(field, tied="lm_head.weight" not in weights),
        weights=weights,
        tokenizer=tokenizer,
        renderer_stop_ids=[tokenizer.eos_token_id],
        chat_template=field("tokenizer.chat_template", None),
        dtype=torch.float32,
        base_model=base_model,
        base_revision=base_revision,
        metadata={"imported_from": gguf_path.name, "license": field("general.license", None)},
    )


def _config(field: Field, *, tied: bool) -> LlamaConfig:
    """The model's shape as the header gives it."""
    import numpy
    from transformers import LlamaConfig

    if (architecture := field("general.architecture")) != "llama":
        raise ModelError(f"this GGUF file holds a {architecture!r} model; only 'llama' ones can be imported")
    if (scaling := field("llama.rope.scaling.type", "none")) != "none":
        raise ModelError(f"this GGUF file scales its rotary embedding ({scaling}); that cannot be imported")
    heads, hidden = field("llama.attention.head_count"), field("llama.embedding_length")
    epsilon = numpy.float32(field("llama.attention.layer_norm_rms_epsilon"))
    return LlamaConfig(
        vocab_size=len(field("tokenizer.ggml.tokens")),
        hidden_size=hidden,
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("llama.attention.head_count_kv", heads),
        head_dim=field("llama.attention.key_length", hidden // heads),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=float(str(epsilon)),  # 1e-05 again, not float32's 9.999999747378752e-06
        rope_parameters={"rope_type": "default", "rope_theta": float(field("llama.rope.freq_base", 10000.0))},
        tie_word_embeddings=tied,
    )


def _weights(reader: Any, field: Field) -> dict[str, Tensor]:
    """Every tensor, dequantised to float32, under its Hugging Face name."""
    import torch
    from gguf import dequantize

    heads = {"attn_q.weight": field("llama.attention.head_count")}
    heads["attn_k.weight"] = field("llama.attention.head_count_kv", heads["attn_q.weight"])
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        if tensor.name in _TOP:
            weights[_TOP[tensor.name]] = values
            continue
        block, _, kind = tensor.name.partition(".")[2].partition(".")
        if not tensor.name.startswith("blk.") or kind not in _LAYER:
            raise ModelError(f"this GGUF file has a tensor {tensor.name!r}, which no Llama model has")
        if kind in heads:
            values = _halves_apart(values, heads[kind])
        weights[f"model.layers.{block}.{_LAYER[kind]}"] = values
    return weights


def _halves_apart(projection: Tensor, num_heads: int) -> Tensor:
    """(heads * head_dim, hidden): from GGUF's rotary order to Hugging Face's.

    GGUF puts the two coordinates of each rotated pair side by side; Hugging Face puts all first
    coordinates of a head before all second ones.
    """
    rows, hidden = projection.shape
    pairs = projection.reshape(num_heads, rows // num_heads // 2, 2, hidden)
    return pairs.transpose(1, 2).reshape(rows, hidden).contiguous()


def _tokenizer(field: Field) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer, with its special tokens and roles."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, flavour = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre", None)
    if kind != "gpt2" or flavour not in _SPLITS_DIGITS:
        raise ModelError(
            f"this GGUF file's tokenizer ({kind}, {flavour}) is of a kind that cannot be imported"
        )
    tokens = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    split: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if _SPLITS_DIGITS[flavour] else []
    split.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    core.pre_tokenizer = pre_tokenizers.Sequence(split)
    core.decoder = decoders.ByteLevel()
    types = field("tokenizer.ggml.token_type")
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == _SPECIAL]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: field(f"tokenizer.ggml.{key}_token_id", None) for role, key in roles.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=field("llama.context_length"),
        clean_up_tokenization_spaces=False,
        **{role: tokens[i] for role, i in ids.items() if i is not None},
    )
