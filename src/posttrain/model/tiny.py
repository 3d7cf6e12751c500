"""Two-layer random models of the supported families, with a tokenizer: for tests and dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.model.export import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

_TEXT = """\
The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.
What is 17 plus 25? The answer is 42. How many apples are left if Tom eats 3 of 12? There are 9 apples left.
You are a helpful assistant. Write a short story about the sea, in two paragraphs, with a title in capitals.
Question: which of these numbers is prime, 21, 27, 31 or 39? Answer: the number 31 is prime.
def add(first, second):
    return first + second
"""
"""What the tokenizer's merges are learned from."""

CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny model for tests.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: a default system prompt, and a newline after the token that ends a turn."""

TULU_BOS_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
"""As OLMo 2's: a BOS token that equals EOS, and no newline after the last turn."""


def tiny_llama(path: Path, *, seed: int = 0, tied: bool = True, **config: Any) -> Path:
    """Write a random Llama at `path`, ChatML-speaking, with pad == EOS as SmolLM2 has; returns `path`.

    2 layers, hidden 32, 4 heads of 8, 2 key-value heads, 320 tokens, 512 positions, float32. `config`
    overrides fields of LlamaConfig. The same arguments give the same bytes.
    """
    from transformers import LlamaConfig

    tokenizer = tiny_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML_TEMPLATE,
    )
    fields = _shape(tokenizer) | {"tie_word_embeddings": tied} | config
    return _write(path, LlamaConfig(**fields), tokenizer, seed)


def tiny_olmo2(path: Path, *, seed: int = 0, tied: bool = False, **config: Any) -> Path:
    """Write a random OLMo 2 at `path`, speaking the Tülu template behind a BOS; returns `path`.

    Shaped as `tiny_llama`, with OLMo 2's token roles: BOS == EOS == <|endoftext|>, and a pad token.
    `config` overrides fields of Olmo2Config. The same arguments give the same bytes.
    """
    from transformers import Olmo2Config

    tokenizer = tiny_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=TULU_BOS_TEMPLATE,
    )
    fields = _shape(tokenizer) | {"tie_word_embeddings": tied} | config
    return _write(path, Olmo2Config(**fields), tokenizer, seed)


def tiny_tokenizer(
    special_tokens: list[str], *, vocab_size: int = 320, chat_template: str | None = None, **roles: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` ids that encodes any text; special tokens come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([_TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
        **roles,
    )


def _shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,  # wide enough that two tokens' logits differ by more than rounding
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _write(path: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return save_model(
        path,
        config=config,
        weights=model.state_dict(),
        tokenizer=tokenizer,
        renderer_stop_ids=[tokenizer.eos_token_id],
        chat_template=tokenizer.chat_template,
        dtype=torch.float32,
        base_model="random",
        metadata={"seed": seed},
    )
