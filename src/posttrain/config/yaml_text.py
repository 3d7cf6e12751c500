"""YAML text as plain values that remember the line each was written on.

Scalars follow YAML 1.2's core schema, so `1e-6` is a number and `no`, `on` and `2024-11-24` are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from posttrain.errors import RecipeError

Keys = tuple[str | int, ...]
"""Where a value is: mapping keys and list indices from the top."""

MOST_VALUES = 100_000
TAG = "tag:yaml.org,2002:"
FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
RESOLVERS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9][0-9_]*$"), list("-+0123456789")),
    ("float", FLOAT, list("-+0123456789.")),
)


class _Reader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's scalars in place of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Writer(yaml.SafeDumper):
    """PyYAML's writer; it quotes what either version of YAML would read as something else than text."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _name, _pattern, _first in RESOLVERS:
    _Reader.add_implicit_resolver(TAG + _name, _pattern, _first)
    _Writer.add_implicit_resolver(TAG + _name, _pattern, _first)


def _write_text(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds Unicode line breaks inside single quotes away; double quotes escape them.
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return writer.represent_scalar(f"{TAG}str", text, style=style)


_Writer.add_representer(str, _write_text)


@dataclass(frozen=True)
class Document:
    """A value, and for its parts the place that each was written: `file:line`, or an override."""

    value: Any
    places: Mapping[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """Where the value at `keys` was written, or the nearest thing around it."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places[keys]


class _Values:
    """Turns one file's nodes into values, noting their lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Keys, str] = {}
        self.open_nodes: set[int] = set()

    def at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.name else ""

    def fail(self, node: yaml.Node, sentence: str) -> RecipeError:
        place = self.at(node)
        return RecipeError(f"{place}: {sentence}" if place else sentence)

    def read(self, node: yaml.Node, keys: Keys) -> Any:
        self.places.setdefault(keys, self.at(node))
        if len(self.places) > MOST_VALUES:
            raise self.fail(node, f"the file holds more than {MOST_VALUES} values; is it a recipe?")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if id(node) in self.open_nodes:
            raise self.fail(node, "an alias contains itself; write the value out")
        if not node.tag.startswith(TAG):
            raise self.fail(node, f"recipes use no YAML tags; remove {node.tag!r}")
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*keys, index)) for index, item in enumerate(node.value)]
            return self.mapping(node, keys)
        finally:
            self.open_nodes.discard(id(node))

    def mapping(self, node: yaml.Node, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, "a key must be a word")
            key = str(key_node.value)
            if key in values:
                raise self.fail(
                    key_node, f"{dotted((*keys, key))} is written twice (first in line {lines[key]})"
                )
            lines[key] = key_node.start_mark.line + 1
            self.places[(*keys, key)] = self.at(key_node)
            values[key] = self.read(value_node, (*keys, key))
        return values

    def scalar(self, node: yaml.ScalarNode) -> str | int | float | bool | None:
        text, kind = node.value, node.tag.removeprefix(TAG)
        if kind == "str":
            return str(text)
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return bool(text.lower() == "true")
        try:
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except ValueError:
            raise self.fail(node, f"{text[:40]!r} is not a number that can be used") from None
        raise self.fail(node, f"recipes use no YAML tags; remove {node.tag!r}")


def dotted(keys: Keys) -> str:
    """`stages.2.grpo` for ("stages", 2, "grpo")."""
    return ".".join(map(str, keys))


def read_yaml(text: str, name: str = "") -> Document:
    """The value of YAML `text`; places are `name:line`, or empty without a name.

    Raises RecipeError where the text is not YAML, a key is written twice, or a tag is used.
    """
    try:
        node = yaml.compose(text, Loader=_Reader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = f"{name}:{mark.line + 1}: " if name and mark else f"{name}: " if name else ""
        raise RecipeError(f"{place}not valid YAML: {problem}") from None
    except RecursionError:
        raise RecipeError(f"{name}: the YAML is nested too deeply") from None
    if node is None:
        return Document(None, {(): name})
    values = _Values(name)
    value = values.read(node, ())
    return Document(value, values.places)


def write_yaml(value: Any) -> str:
    """Block-style YAML text that `read_yaml` and YAML 1.1 readers read back as `value`."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=110)
