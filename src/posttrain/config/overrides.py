"""`stages.2.grpo.learning_rate=1e-6` on the command line, put into a recipe's values."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from posttrain.config.yaml_text import Document, Keys, dotted, read_yaml
from posttrain.errors import RecipeError


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """A new document in which each `path=value` is set, in order; values are YAML.

    A part of a path is a key, or a list index that may be negative. Tables on the way are made where
    the file leaves them out; whether their keys exist is for the recipe's schema to say.
    Raises RecipeError for a malformed override, an index that is not there, or a path through a value.
    """
    value, places = copy.deepcopy(document.value), dict(document.places)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise RecipeError(f"{override!r} is no override; write KEY=VALUE, such as stages.0.sft.epochs=3")
        if not text:
            raise RecipeError(
                f"override {override!r} has no value; write {path}=null for none, or {path}='\"\"' for empty "
                "text"
            )
        label = f"override {override!r}"
        try:
            new = read_yaml(text).value
        except RecipeError as error:
            raise RecipeError(f"{label}: the value is {error}") from None
        keys = _set(value, path.split("."), new, label)
        places = {k: v for k, v in places.items() if k[: len(keys)] != keys}
        # The tables that the override made on its way are its own too.
        places |= {keys[:n]: label for n in range(1, len(keys) + 1) if keys[:n] not in places}
    return Document(value, places)


def _set(root: Any, parts: Sequence[str], new: Any, label: str) -> Keys:
    """Set `new` below `root`; returns where, with list indices counted from 0."""
    here, keys = root, ()  # type: tuple[Any, Keys]
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(here, list):
            index = _index(here, part, keys, label)
            keys = (*keys, index)
            if last:
                here[index] = new
            here = here[index]
        elif isinstance(here, dict):
            keys = (*keys, part)
            if last:
                here[part] = new
            elif here.get(part) is None:
                here[part] = {}
            here = here[part]
        else:
            raise RecipeError(f"{label}: {dotted(keys)} is {here!r}, a value with no keys below it")
    return keys


def _index(items: list[Any], part: str, keys: Keys, label: str) -> int:
    where = dotted(keys)
    names = f"0 to {len(items) - 1}" if items else "but it is empty"
    try:
        index = int(part)
    except ValueError:
        kinds = [
            i
            for i, item in enumerate(items)
            if isinstance(item, dict) and (part in item or item.get("name") == part)
        ]
        hint = f"; did you mean {where}.{kinds[0]}?" if kinds else ""
        raise RecipeError(
            f"{label}: {where} is a list, so {part!r} must be an index, {names}{hint}"
        ) from None
    if not -len(items) <= index < len(items):
        raise RecipeError(f"{label}: {where} has no index {index}; there is {names}")
    return index % len(items)
