"""Every key of a recipe, as a table: what `posttrain check --explain` shows and docs/recipes.md holds."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.lora import LoRA
from posttrain.config.measure import Benchmarks, Measure, Selection
from posttrain.config.mistakes import shown
from posttrain.config.parts import Evaluation, Part, Rejection, Runtime, Source
from posttrain.config.ppo import PPO
from posttrain.config.recipe import Recipe
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT
from posttrain.config.stages import Stage

TABLES: dict[str, type[Part]] = {
    "Recipe": Recipe,
    "runtime": Runtime,
    "evaluation": Evaluation,
    "lora": LoRA,
    "stages.N": Stage,
    "stages.N.measure": Measure,
    "stages.N.measure.evaluation": Selection,
    "stages.N.measure.benchmarks": Benchmarks,
    "stages.N.sft": SFT,
    "stages.N.dpo": DPO,
    "stages.N.reward_model": RewardModel,
    "stages.N.ppo": PPO,
    "stages.N.grpo": GRPO,
    "Source": Source,
    "Rejection": Rejection,
}
"""Tables of a recipe by where they stand; Source and Rejection stand in several places."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table."""

    name: str
    type: str
    default: str
    description: str


def keys_of(table: type[Part]) -> Iterator[Key]:
    """The keys of a table in the order in which recipes write them."""
    for name, info in table.model_fields.items():
        yield Key(name, _type(info.annotation), _default(info), info.description or "")


def markdown() -> str:
    """The reference as Markdown: one heading and one table per part of a recipe."""
    parts = []
    for where, table in TABLES.items():
        lines = [f"### {where}", "", (table.__doc__ or "").strip(), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in keys_of(table):
            kind = key.type.replace("|", "\\|")
            lines.append(f"| `{key.name}` | {kind} | {key.default} | {key.description} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _type(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation.__name__
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is types.UnionType or str(origin) == "typing.Union":
        return " | ".join(map(_type, args))
    if hasattr(annotation, "__metadata__"):
        return _type(args[0])
    return {str: "text", int: "whole number", float: "number", bool: "true | false"}[annotation]


def _default(info: FieldInfo) -> str:
    if info.default_factory is not None:
        return "runs/NAME"
    if info.default is PydanticUndefined:
        return "required"
    if isinstance(info.default, Part):
        return "its defaults"
    if isinstance(info.default, str) and info.default:
        return info.default
    if isinstance(info.default, tuple):
        return ", ".join(map(str, info.default)) or "none"
    return shown(info.default)
