"""Small tokenizers trained on the spot, and the forms their templates should take, written by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.data.render import Renderer
from posttrain.records import Message

TEXT = [
    "The quick brown fox jumps over the lazy dog.\n\nThe dog is not amused.\n",
    "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n        return a - b\n",
    "What is 17 plus 25? The answer is 42.   Of course.\n\n\n- one\n- two\n",
    "user assistant system im_start im_end <|user|>\n<|assistant|>\n<think> </think> ée 你好 🙂\n",
] * 8

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML = (  # as SmolLM2-Instruct ships it
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TRIMMING = (  # as Llama 3: contents lose their outer white space
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
THINKING = (  # as reasoning models: thinking is kept in the last turn only, so prefixes are not stable
    "{% for m in messages %}{% set c = m.content %}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMPTY_THINKING = (  # as Qwen 3: a last turn without thinking gets an empty one, for the model to write
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last and '</think>' not in m.content %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_CLOSING = (  # as r1_simple_chat: nothing closes a turn
    "{% for m in messages %}{{ m.role.capitalize() + ': ' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SPACED = (  # as Llama 2: no generation prompt, and a space before the closing token
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)

Piece = tuple[str, bool]
"""A stretch of rendered text, and whether it is a target."""


def _turns(
    messages: Sequence[Message],
    open_turn: Callable[[str], str],
    close: Callable[[str, bool], Piece],
    after: Callable[[str, bool], str],
    content: Callable[[Message, bool], str] = lambda m, last: m.content,
) -> list[Piece]:
    pieces: list[Piece] = []
    for i, m in enumerate(messages):
        last, says = i == len(messages) - 1, m.role == "assistant"
        text, target = close(m.role, last)
        pieces += [(open_turn(m.role), False), (content(m, last), says), (text, target and says)]
        pieces.append((after(m.role, last), False))
    return pieces


def tulu_pieces(messages: Sequence[Message]) -> list[Piece]:
    return _turns(
        messages,
        lambda role: f"<|{role}|>\n",
        lambda role, last: ("<|im_end|>", True) if role == "assistant" else ("", False),
        lambda role, last: "" if role == "assistant" and last else "\n",
    )


def chatml_turns(messages: Sequence[Message], **changes: Callable) -> list[Piece]:
    return _turns(
        messages,
        lambda role: f"<|im_start|>{role}\n",
        lambda role, last: ("<|im_end|>", True),
        lambda role, last: "\n",
        **changes,
    )


def chatml_pieces(messages: Sequence[Message]) -> list[Piece]:
    default = [] if messages[0].role == "system" else [(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", False)]
    return default + chatml_turns(messages)


def olmo_pieces(messages: Sequence[Message]) -> list[Piece]:
    functions = " You do not currently have access to any functions. <functions></functions>"
    who = (
        "You are OLMo, a helpful function-calling AI assistant built by Ai2. Your date cutoff is November "
        "2024, and your model weights are available at https://huggingface.co/allenai."
    )
    own = any(m.role == "system" for m in messages)
    default = [] if own else [(f"<|im_start|>system\n{who}{functions}<|im_end|>\n", False)]
    return default + _turns(
        messages,
        lambda role: f"<|im_start|>{role}\n",
        # The fixture's EOS is <|endoftext|> here, so the last turn closes otherwise than the others.
        lambda role, last: ("<|endoftext|>" if role == "assistant" and last else "<|im_end|>", True),
        lambda role, last: "" if role == "assistant" and last else "\n",
        content=lambda m, last: m.content + (functions if m.role == "system" else ""),
    )


def zephyr_pieces(messages: Sequence[Message]) -> list[Piece]:
    return _turns(
        messages,
        lambda role: f"<|{role}|>\n",
        lambda role, last: ("<|im_end|>", True),
        lambda role, last: "\n",
    )


def trimming_pieces(messages: Sequence[Message]) -> list[Piece]:
    turns = _turns(
        messages,
        lambda role: f"<|im_start|>{role}\n\n",
        lambda role, last: ("<|im_end|>", True),
        lambda role, last: "",
        content=lambda m, last: m.content.strip(),
    )
    return [("<|im_start|>", False), *turns]


def thinking_pieces(messages: Sequence[Message]) -> list[Piece]:
    def content(m: Message, last: bool) -> str:
        drops = m.role == "assistant" and not last and "</think>" in m.content
        return m.content.split("</think>")[-1].lstrip("\n") if drops else m.content

    return chatml_turns(messages, content=content)


def empty_thinking_pieces(messages: Sequence[Message]) -> list[Piece]:
    def content(m: Message, last: bool) -> str:
        adds = m.role == "assistant" and last and "</think>" not in m.content
        return ("<think>\n\n</think>\n\n" if adds else "") + m.content

    return chatml_turns(messages, content=content)


def no_closing_pieces(messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for m in messages:
        says = m.role == "assistant"
        # The generation prompt ends at the colon, so the space after it is the assistant's to write.
        pieces += [(f"{m.role.capitalize()}:", False), (f" {m.content}", says), ("\n\n", False)]
    return pieces


def spaced_pieces(messages: Sequence[Message]) -> list[Piece]:
    pieces: list[Piece] = []
    for m in messages:
        says = m.role == "assistant"
        # A prompt ends at [/INST], so the space after it is the assistant's to write.
        opening, closing = (" ", " <|im_end|>") if says else ("<|im_start|>[INST] ", " [/INST]")
        pieces += [(opening, says), (m.content, says), (closing, says)]
    return pieces


@dataclass(frozen=True)
class Style:
    """A template, the special tokens it is used with, and its form by hand."""

    template: str
    pieces: Callable[[Sequence[Message]], list[Piece]]
    eos: str = "<|im_end|>"
    closings: tuple[str, ...] = ("<|im_end|>",)


STYLES = {
    "tulu": Style("tulu", tulu_pieces),
    "tulu_bos": Style("tulu_bos", lambda m: [("<|im_start|>", False), *tulu_pieces(m)]),
    "olmo": Style("olmo", olmo_pieces, eos="<|endoftext|>", closings=("<|endoftext|>", "<|im_end|>")),
    "chatml": Style(CHATML, chatml_pieces),
    "zephyr": Style(ZEPHYR, zephyr_pieces),
    "trimming": Style(TRIMMING, trimming_pieces),
    "thinking": Style(THINKING, thinking_pieces),
    "empty_thinking": Style(EMPTY_THINKING, empty_thinking_pieces),
    "spaced": Style(SPACED, spaced_pieces),
    "no_closing": Style(NO_CLOSING, no_closing_pieces),
}


def bpe_tokenizer(
    *,
    eos: str = "<|im_end|>",
    template: str | None = CHATML,
    trim_offsets: bool = True,
    nfc: bool = False,
    vocab_size: int = 600,
) -> PreTrainedTokenizerFast:
    """SmolLM2-like: byte-level BPE whose offsets leave out spaces, bos <|im_start|>, pad == eos."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC() if nfc else None
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token=eos,
        pad_token=eos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like: a space is put before the text, but not after a special token."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>", "<|im_start|>", "<|im_end|>"], show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return bpe_tokenizer


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    return metaspace_tokenizer()


@pytest.fixture(scope="session")
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    return bpe_tokenizer()


@pytest.fixture
def chatml(chatml_tokenizer) -> Renderer:
    return Renderer(chatml_tokenizer)


@pytest.fixture
def tulu(chatml_tokenizer) -> Renderer:
    return Renderer(chatml_tokenizer, "tulu")


@pytest.fixture(scope="session", params=STYLES)
def styled(request: pytest.FixtureRequest) -> tuple[Style, Renderer]:
    """Each template with its form by hand."""
    style = STYLES[request.param]
    return style, Renderer(bpe_tokenizer(eos=style.eos), style.template)


WORDS = [
    "the",
    "dog",
    "def",
    "42",
    "é",
    "你好",
    "🙂",
    "e\u0301",
    "<think>",
    "im_end",
    "|>",
    "A.",
    "x=1",
    "<|user|>",
]
SPACES = [" ", "  ", "\n", "\n\n", "\n    ", "\t", "\u00a0", "\r\n"]


def random_text(generator: random.Random) -> str:
    """A few words with all kinds of white space between and around them."""
    text = generator.choice(["", "", *SPACES])
    for _ in range(generator.randint(1, 8)):
        text += generator.choice(WORDS) + generator.choice(SPACES)
    return text.rstrip() + generator.choice(["", "", *SPACES])


def random_conversation(generator: random.Random) -> list[Message]:
    """One to four exchanges: some with a system turn, some with thinking, some that end in a user turn."""
    messages = [Message("system", random_text(generator))] if generator.random() < 0.3 else []
    for _ in range(generator.randint(1, 4)):
        messages.append(Message("user", random_text(generator)))
        thought = f"<think>\n{random_text(generator)}\n</think>\n\n" if generator.random() < 0.4 else ""
        messages.append(Message("assistant", thought + random_text(generator)))
    if generator.random() < 0.1:
        messages.append(Message("user", random_text(generator)))
    return messages


@pytest.fixture(scope="session")
def some_text() -> Callable[[random.Random], str]:
    return random_text


@pytest.fixture(scope="session")
def some_conversation() -> Callable[[random.Random], list[Message]]:
    return random_conversation
