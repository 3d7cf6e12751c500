"""Ids and masks: compared with forms written by hand, and with the plain tokenizer."""

from __future__ import annotations

import random

import pytest

from posttrain.data.render import Renderer
from posttrain.errors import DataError, ModelError, RecipeError
from posttrain.records import Message
from tests.data.conftest import (  # type: ignore[import-not-found]
    SYSTEM,
    bpe_tokenizer,
    metaspace_tokenizer,
    random_conversation,
    random_text,
)

USER, REPLY = Message("user", "What is 17 plus 25?"), Message("assistant", "The answer is 42.")


def plain_ids(renderer: Renderer, text: str) -> tuple[int, ...]:
    return tuple(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
