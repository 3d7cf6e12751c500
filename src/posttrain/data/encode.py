"""Texts to token ids and the characters that each stands for, many at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from posttrain.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text's ids, and the characters [start, end) that each stands for."""

    ids: list[int]
    places: list[tuple[int, int]]

    @classmethod
    def of(cls, found: Encoding) -> Tokens:
        """What the tokenizer found."""
        return cls(found.ids, found.offsets)


@dataclass(frozen=True, slots=True)
class Text:
    """A text, and the characters [start, end) of it in which the string of a special token is ordinary text."""

    text: str
    tainted: Sequence[tuple[int, int]] = ()


class Encoder:
    """A tokenizer that takes the strings of special tokens as such where a template wrote them, and nowhere else.

    `sample` gives a text with special tokens in it, to find out whether it can be tokenised between them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sample: Callable[[], str]) -> None:
        self.core = _core(tokenizer)
        added = tokenizer.added_tokens_decoder
        self.added_ids = {token.content: id for id, token in added.items()}
        self.special = any_of([token.content for token in added.values() if token.special])
        self.num_escaped = 0
        """Special-token strings met so far that were encoded as ordinary text."""
        self._sample = sample

    def encode(self, text: Text) -> Tokens:
        """The tokens of `text`; DataError where the tokenizer cannot take a special token's string as text."""
        return self._around(text) if text.tainted else self.plain(text.text)

    def encode_all(self, texts: Sequence[Text]) -> Iterator[Tokens | DataError]:
        """`encode` of each, its error in place of those that have one.

        The tokenizer's own threads share the texts. What it works with is then theirs: beside rows that stay, in the
        same heap, each text would take longer than the one before.
        """
        plain = [text.text for text in texts if not text.tainted]
        # the template writes the BOS, if any
        found = iter(self.core.encode_batch(plain, add_special_tokens=False))
        # one after the other: a thousand places of a thousand texts are much for Python's collector to look through
        return (or_error(self._around, text) if text.tainted else Tokens.of(next(found)) for text in texts)

    def plain(self, text: str) -> Tokens:
        """The tokens of a text, special ones wherever their strings are."""
        return Tokens.of(self.core.encode(text, add_special_tokens=False))

    def _around(self, text: Text) -> Tokens:
        found = list(self.special.finditer(text.text))
        kept = [
            m for m in found if not any(m.start() < end and m.end() > start for start, end in text.tainted)
        ]
        if not self._splits_cleanly:
            names = ", ".join(sorted({m[0] for m in found if m not in kept}))
            raise DataError(f"the text contains {names}, which this tokenizer cannot take as text; remove it")
        self.num_escaped += len(found) - len(kept)
        return self._tokenise_around(text.text, kept)

    def _tokenise_around(self, text: str, kept: Iterable[re.Match[str]]) -> Tokens:
        """Only the special tokens in `kept` are taken as such; what lies between is ordinary text."""
        tokens = Tokens([], [])
        position = 0
        for match in [*kept, None]:
            end = match.start() if match else len(text)
            piece = Tokens.of(self._text_core.encode(text[position:end], add_special_tokens=False))
            tokens.ids.extend(piece.ids)
            tokens.places.extend((position + start, position + stop) for start, stop in piece.places)
            if match:
                tokens.ids.append(self.added_ids[match[0]])
                tokens.places.append(match.span())
                position = match.end()
        return tokens

    @cached_property
    def _text_core(self) -> Tokenizer:
        """The tokenizer that takes special-token strings as ordinary text."""
        core = copy.deepcopy(self.core)
        core.encode_special_tokens = True
        return core

    @cached_property
    def _splits_cleanly(self) -> bool:
        """True if tokenising between special tokens gives what tokenising whole gives; Metaspace may not."""
        text = self._sample()
        return self._tokenise_around(text, self.special.finditer(text)).ids == self.plain(text).ids


def or_error(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | DataError:
    """What `make` gives, or the DataError that it raises."""
    try:
        return make(*args, **kwargs)
    except DataError as error:
        return error


def any_of(strings: Sequence[str], *, before: str = "") -> re.Pattern[str]:
    """A pattern for any of the strings, the longest first, as tokenizers match them."""
    choice = "|".join(re.escape(s) for s in sorted(set(strings), key=len, reverse=True) if s)
    return re.compile(f"{before}(?:{choice})" if choice else r"(?!)")


def _core(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's engine that does nothing but tokenise.

    It has no truncation or padding left behind by others, and reports offsets as they are: byte-level
    tokenizers otherwise leave spaces out of them, so that indentation would be no target.
    """
    from tokenizers import processors

    core: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    core.no_truncation()
    core.no_padding()
    core.post_processor = processors.Sequence([])
    return core
