"""Messages to token ids and loss masks, and back. Nothing else in the package reads a chat template.

How a mask is found: the template is rendered once with a marker in place of each content, which shows what
the template itself writes around them; the real text is checked against that frame; it is tokenised once,
whole, and a token is a target when its characters overlap an assistant's words or the token that closes them.
So it does not matter whether the rendering of a shorter conversation is a prefix of a longer one's. A row
whose frame does not fit, or whose targets do not decode to the text they should, is refused.

Left out: tool calls and documents in templates, and continuing a partly written assistant turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from posttrain.data.encode import Encoder, Text, Tokens, any_of, or_error
from posttrain.data.templates import find_template
from posttrain.errors import DataError, ModelError
from posttrain.records import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["all", "last"]
_TOGETHER = 256
"""Conversations that are tokenised at once."""

_PLAIN = (Message("user", "Hello there."), Message("assistant", "Yes, it is."))


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the contents of messages with given roles, in the order they appear."""

    order: tuple[int, ...]
    """Which message each slot holds; a message the template leaves out has none."""
    before: tuple[str, ...]
    """The text before each slot; for an assistant's, up to the end of its header."""
    preface: tuple[str, ...]
    """What the template writes between an assistant's header and its content; almost always nothing."""
    tail: str
    """The text after the last slot."""

    def fill(self, values: Sequence[str]) -> str:
        """The text with these values (preface and content) in the slots."""
        return "".join(b + v for b, v in zip(self.before, values, strict=True)) + self.tail

    def after(self, slot: int) -> str:
        """The template's text that follows a slot."""
        return self.before[slot + 1] if slot + 1 < len(self.before) else self.tail


@dataclass(frozen=True, slots=True)
class Span:
    """Where one message lies in a rendered text, in characters."""

    message: int
    target: int
    """Just after the header, where a sampler would start to write."""
    start: int
    """Where the message's own words start."""
    end: int
    """Where they end."""
    stop: int
    """After the token that closes the turn, if there is one."""


LaidOut = tuple[str, list[Span]]
"""A rendered text, and where each message lies in it."""


class Renderer:
    """One tokenizer and one chat template: the only way from messages to tokens.

    `template` is None for the tokenizer's own, a name in `TEMPLATES`, a path ending in `.jinja`, or Jinja
    text. Messages are rendered as given, so whatever a template adds of its own (a default system prompt, a
    BOS) is in every id sequence alike. Raises ModelError if there is no template or the tokenizer gives no
    offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                "the tokenizer is a slow one without character offsets; save it as tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.template = find_template(template) if template is not None else _own_template(tokenizer)
        self._encoder = Encoder(tokenizer, lambda: self.text(_PLAIN * 2))
        self._closing = any_of(list(self._encoder.added_ids), before=r"[ \t]*")
        self._frames: dict[tuple[tuple[str, ...], bool], Frame] = {}
        try:
            self._header = self._find_header()
            self.stop_ids = self._find_stop_ids()
        except DataError as error:
            raise ModelError(f"the chat template cannot render a plain conversation: {error}") from error

    def text(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The rendered text; with `generation_prompt` it ends where the assistant would start to write."""
        from jinja2 import TemplateError

        turns = [{"role": m.role, "content": m.content} for m in messages]
        if not turns:
            raise DataError("there are no messages to render")
        try:
            rendered = self.tokenizer.apply_chat_template(
                turns, chat_template=self.template, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateError as error:
            raise DataError(f"the chat template refuses these messages ({error})") from error
        return str(rendered)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids that end in the generation prompt."""
        if messages and messages[-1].role == "assistant":
            raise DataError(
                "a prompt ends in an assistant turn, so there is nothing left to write; drop that turn"
            )
        text, spans = self._lay_out(messages, generation_prompt=True)
        return tuple(self._encoder.encode(self._with_special_text(messages, text, spans)).ids)

    def conversation(self, messages: Sequence[Message], *, train_on: TrainOn = "all", id: str = "") -> Row:
        """Token ids with a mask that is True on what assistants say and the token that closes each turn.

        Headers, and newlines after a closing token, are no targets. A token that straddles the end of a
        header counts as the assistant's. `train_on="last"` keeps the last assistant turn only. Raises
        DataError, naming `id`, if there is no target or no mask is certain.
        """
        (row,) = self.conversations([(id, messages)], train_on=train_on)
        if isinstance(row, DataError):
            raise row
        return row

    def conversations(
        self, many: Iterable[tuple[str, Sequence[Message]]], *, train_on: TrainOn = "all"
    ) -> Iterator[Row | DataError]:
        """`conversation` of each id and its messages, in order, with the error in place of one that is refused.

        Many are tokenised at once, by as many threads as the tokenizer takes (TOKENIZERS_PARALLELISM).
        """
        left = iter(many)
        while some := list(islice(left, _TOGETHER)):
            laid = [or_error(self._lay_out, messages, generation_prompt=False) for _, messages in some]
            texts = [
                self._with_special_text(messages, *each)
                for (_, messages), each in zip(some, laid, strict=True)
                if not isinstance(each, DataError)
            ]
            tokens = self._encoder.encode_all(texts)
            for (id, messages), each in zip(some, laid, strict=True):
                found = each if isinstance(each, DataError) else next(tokens)
                yield or_error(self._row, id, messages, train_on, each, found)

    @property
    def num_escaped(self) -> int:
        """Special-token strings met inside messages so far and encoded as ordinary text."""
        return self._encoder.num_escaped

    @cached_property
    def _numbers(self) -> list[int]:
        """One object for each token: those that the tokenizer makes anew take three times a row's memory."""
        return list(range(len(self.tokenizer)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens skipped."""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all that decides tokens here: template, tokenizer, special tokens, and a rendering."""
        parts = {
            "template": self.template,
            "tokenizer": self._encoder.core.to_str(),
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "rendering": self.text(_PLAIN) + self.text(_PLAIN[:1], generation_prompt=True),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _row(
        self,
        id: str,
        messages: Sequence[Message],
        train_on: TrainOn,
        laid: LaidOut | DataError,
        tokens: Tokens | DataError,
    ) -> Row:
        try:
            if isinstance(laid, DataError):
                raise laid
            if isinstance(tokens, DataError):
                raise tokens
            mask = self._mask(messages, train_on, *laid, tokens)
        except DataError as error:
            raise DataError(f"row {id!r}: {error}" if id else str(error)) from error
        return Row(id, tuple(map(self._numbers.__getitem__, tokens.ids)), tuple(mask.tolist()))

    def _mask(
        self, messages: Sequence[Message], train_on: TrainOn, text: str, spans: list[Span], tokens: Tokens
    ) -> np.ndarray:
        """(N,) bool: which of `tokens` are targets."""
        ids = tokens.ids
        said = [span for span in spans if messages[span.message].role == "assistant"]
        said = said[-1:] if train_on == "last" else said
        starts, ends = np.array(tokens.places, dtype=np.int64).reshape(-1, 2).T
        mask = np.zeros(len(ids), dtype=bool)
        for span in said:
            inside = np.flatnonzero((starts < span.stop) & (ends > span.target))
            if len(inside):
                self._check([ids[i] for i in inside], text[starts[inside].min() : ends[inside].max()])
            mask[inside] = True
        mask[:1] = False  # nothing predicts a row's first token
        if not mask.any():
            raise DataError("there is no assistant turn to train on")
        return mask

    def _lay_out(self, messages: Sequence[Message], *, generation_prompt: bool) -> LaidOut:
        """The rendered text and where each message lies in it."""
        text = self.text(messages, generation_prompt=generation_prompt)
        frame = self._frame(tuple(m.role for m in messages), generation_prompt)
        values = [p + messages[i].content for p, i in zip(frame.preface, frame.order, strict=True)]
        plain = frame.fill(values) == text
        if not plain:
            # The template changes contents (trims them, drops earlier thinking): see what it makes of each.
            values = [self._value(messages, slot, frame, generation_prompt) for slot in range(len(values))]
            if frame.fill(values) != text:
                raise DataError("the chat template mixes these messages so that their bounds cannot be found")
        spans, position = [], 0
        for slot, (message, value) in enumerate(zip(frame.order, values, strict=True)):
            target = position + len(frame.before[slot])
            end = target + len(value)
            closed = self._closing.match(frame.after(slot))
            stop = end + (closed.end() if closed and messages[message].role == "assistant" else 0)
            start = target + (len(frame.preface[slot]) if plain else 0)
            spans.append(Span(message, target, start, end, stop))
            position = end
        return text, spans

    def _value(self, messages: Sequence[Message], slot: int, frame: Frame, generation_prompt: bool) -> str:
        """What the template writes for one message, seen by rendering it among markers."""
        message = frame.order[slot]
        among = [m if i == message else replace(m, content=_marker(i)) for i, m in enumerate(messages)]
        text = self.text(among, generation_prompt=generation_prompt)
        values = [p + _marker(i) for p, i in zip(frame.preface, frame.order, strict=True)]
        values[slot] = "\0"
        before, _, after = frame.fill(values).partition("\0")
        fits = text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)
        if not fits:
            raise DataError(
                f"the chat template treats message {message} in a way whose bounds cannot be found"
            )
        return text[len(before) : len(text) - len(after)]

    def _frame(self, roles: tuple[str, ...], generation_prompt: bool) -> Frame:
        """The frame for these roles; it does not depend on what is said, so it is found once."""
        key = (roles, generation_prompt)
        if key not in self._frames:
            self._frames[key] = self._find_frame(roles, generation_prompt)
        return self._frames[key]

    def _find_frame(self, roles: tuple[str, ...], generation_prompt: bool) -> Frame:
        marked = [Message(role, _marker(i)) for i, role in enumerate(roles)]
        pieces = re.split(_marker(r"(\d+)"), self.text(marked, generation_prompt=generation_prompt))
        order = tuple(int(number) for number in pieces[1::2])
        if len(set(order)) < len(order):
            raise DataError("the chat template writes a message twice, so its bounds are not certain")
        before, preface = [], []
        for slot, message in enumerate(order):
            text = pieces[2 * slot]
            cut = self._header_end(roles, message, text) if roles[message] == "assistant" else len(text)
            before.append(text[:cut])
            preface.append(text[cut:])
        return Frame(order, tuple(before), tuple(preface), pieces[-1])

    def _header_end(self, roles: tuple[str, ...], message: int, text: str) -> int:
        """Where, in the template's text before an assistant's content, the prompt for that turn would end."""
        if message:
            prompt = self._frame(roles[:message], True)
            if text.startswith(prompt.tail):
                return len(prompt.tail)
        found = text.rfind(self._header) if self._header else -1
        return found + len(self._header) if found >= 0 else len(text)

    def _find_header(self) -> str:
        """The text that a generation prompt adds, which is how an assistant's turn opens."""
        without = self.text(_PLAIN[:1])
        asked = self.text(_PLAIN[:1], generation_prompt=True)
        return asked[len(without) :] if asked.startswith(without) else ""

    def _find_stop_ids(self) -> tuple[int, ...]:
        """The tokens that close an assistant's turn: a last one, an earlier one, and the tokenizer's EOS."""
        found: list[int] = []
        for turns in (_PLAIN, _PLAIN * 2):
            frame = self._frame(tuple(m.role for m in turns), False)
            for slot, message in enumerate(frame.order):
                closed = self._closing.match(frame.after(slot))
                if turns[message].role == "assistant" and closed:
                    found.append(self._encoder.added_ids[closed[0].lstrip(" \t")])
        if self.tokenizer.eos_token_id is not None:
            found.append(self.tokenizer.eos_token_id)
        if not found:
            raise ModelError(
                "nothing ends a turn: the template closes none and the tokenizer has no EOS token"
            )
        return tuple(dict.fromkeys(found))

    def _with_special_text(self, messages: Sequence[Message], text: str, spans: Sequence[Span]) -> Text:
        """`text`, tainted by the messages whose words contain the string of a special token."""
        special = self._encoder.special
        return Text(text, [(s.start, s.end) for s in spans if special.search(messages[s.message].content)])

    def _check(self, ids: list[int], expected: str) -> None:
        """Refuse a mask whose tokens do not say what the assistant says."""
        said = self._decode_whole(ids)
        if said == expected:
            return
        # Normalising tokenizers do not give a text back exactly; compare with what they make of it alone.
        again = self._decode_whole(self._encoder.plain(expected).ids)
        if said.lstrip(" ") != again.lstrip(" "):
            raise DataError(f"the targets decode to {said[:80]!r} instead of {expected[:80]!r}")

    def _decode_whole(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError(
            "the tokenizer has no chat template; name one, such as chat_template: tulu"
        ) from error


def _marker(message: int | str) -> str:
    """A word that stands for a message's content; it is looked for only in texts without real contents."""
    return f"Zslot{message}Z"
