"""What the schema rejects, as a sentence a person can act on."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from posttrain.config.parts import Part
from posttrain.config.recipe import Recipe
from posttrain.config.yaml_text import Document, Keys, dotted
from posttrain.errors import RecipeError

FOREIGN_NAMES = {
    "lr": ("learning_rate",),
    "lr_scheduler_type": ("schedule",),
    "warmup_ratio": ("warmup_fraction",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs", "inner_epochs"),
    "num_iterations": ("inner_epochs",),
    "num_mini_batches": ("mini_batches",),
    "batch_size": ("batch_rows", "batch_pairs", "prompts_per_step"),
    "per_device_train_batch_size": ("rows_per_micro_batch",),
    "max_seq_length": ("max_tokens",),
    "max_length": ("max_tokens", "max_new_tokens"),
    "response_length": ("max_new_tokens",),
    "max_completion_length": ("max_new_tokens",),
    "max_prompt_length": ("max_prompt_tokens",),
    "num_generations": ("samples_per_prompt",),
    "group_size": ("samples_per_prompt",),
    "number_samples_per_prompt": ("samples_per_prompt",),
    "num_unique_prompts_rollout": ("prompts_per_step",),
    "beta": ("kl_coefficient",),
    "epsilon": ("clip_low",),
    "epsilon_high": ("clip_high",),
    "cliprange": ("clip_low",),
    "loss_type": ("loss",),
    "dpo_beta": ("beta",),
    "penalty_reward_value": ("no_stop_score",),
    "verification_reward": ("reward_scale",),
    "reduce_loss": ("loss_denominator",),
    "dataset": ("data", "problems"),
    "model_name_or_path": ("model",),
    "output_dir": ("output",),
    "dtype": ("compute_dtype",),
}
"""Names that other libraries have for keys of ours, for hints only."""

WANTED = {
    "int_type": "it must be a whole number, written without a point or an exponent",
    "int_from_float": "it must be a whole number, written without a point or an exponent",
    "float_type": "it must be a number",
    "finite_number": "it must be a finite number",
    "string_type": "it must be text; put it in quotes",
    "bool_type": "it must be true or false",
    "tuple_type": "it must be a list",
    "model_type": "it must be a table of keys and values",
    "too_short": "it needs at least one entry",
    "string_too_short": "it must not be empty",
    "greater_than": "it must be greater than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
}
"""pydantic's error types, as the rule that was broken."""


def explain(error: ValidationError, document: Document) -> RecipeError:
    """The RecipeError that says where the first mistake is, what it is, and how many more there are."""
    found = [e for e in error.errors() if not _echo(e, error.errors())]
    # A misspelt key also makes the right one missing: say the former first.
    first = min(found, key=lambda e: e["type"] != "extra_forbidden")
    place, sentence = _sentence(first, document)
    others = len(found) - 1
    rest = f" (and {others} more {'mistake' if others == 1 else 'mistakes'})" if others else ""
    return RecipeError(f"{place}: {sentence}{rest}")


def _echo(error: ErrorDetails, errors: list[ErrorDetails]) -> bool:
    """True for what pydantic adds to other errors: a list is "too short" when its entries are wrong."""
    at = error["loc"]
    below = any(len(e["loc"]) > len(at) and e["loc"][: len(at)] == at for e in errors)
    return error["type"] == "default_factory_not_called" or (error["type"] == "too_short" and below)


def table_at(keys: Keys) -> type[Part] | None:
    """The schema of the table at `keys`, or None where a recipe has none."""
    table: type[Part] = Recipe
    for key in keys:
        if isinstance(key, int):
            continue
        if key not in table.model_fields:
            return None
        inner = _part_in(table.model_fields[key].annotation)
        if inner is None:
            return None
        table = inner
    return table


def _part_in(annotation: Any) -> type[Part] | None:
    """The Part that an annotation such as `SFT | None` or `tuple[Source, ...]` holds."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((part for arg in get_args(annotation) if (part := _part_in(arg)) is not None), None)


def _sentence(error: ErrorDetails, document: Document) -> tuple[str, str]:
    keys: Keys = error["loc"]
    context = error.get("ctx", {})
    kind = error["type"]
    where = dotted(keys)
    if kind == "extra_forbidden":
        return document.place(keys), _unknown_key(keys)
    if kind == "missing":
        return document.place(keys[:-1]), _missing_key(keys)
    if kind == "broken_rule":
        at = (*keys, context["field"]) if context["field"] else keys
        return document.place(at), f"{where}: {context['sentence']}" if where else str(context["sentence"])
    if kind == "literal_error":
        wanted = _choices(keys, error["input"])
    else:
        wanted = WANTED[kind].format(**context) if kind in WANTED else error["msg"]
    return document.place(keys), f"{where or 'the recipe'} is {shown(error['input'])}; {wanted}"


def _unknown_key(keys: Keys) -> str:
    table, key = table_at(keys[:-1]), str(keys[-1])
    assert table is not None  # pydantic met the key in it
    owner = dotted(keys[:-1]) or "a recipe"
    if key in table.refused_keys:
        return f"{owner} takes no {key!r}: {table.refused_keys[key]}"
    known = list(table.model_fields)
    foreign = [name for name in FOREIGN_NAMES.get(key, ()) if name in known]
    near = foreign or difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
    return f"{owner} has no key {key!r}; {hint}"


def _missing_key(keys: Keys) -> str:
    table, key = table_at(keys[:-1]), str(keys[-1])
    assert table is not None
    owner = dotted(keys[:-1]) or "the recipe"
    return f"{owner} lacks the key {key!r}: {table.model_fields[key].description}"


def _choices(keys: Keys, value: Any) -> str:
    table = table_at(keys[:-1])
    assert table is not None
    choices = [str(choice) for choice in _literals(table.model_fields[str(keys[-1])].annotation)]
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"it must be {' or '.join(choices) if len(choices) < 3 else 'one of ' + ', '.join(choices)}{hint}"


def _literals(annotation: Any) -> list[Any]:
    args = get_args(annotation)
    if args and all(isinstance(arg, str | int) for arg in args):
        return list(args)
    return [choice for arg in args for choice in _literals(arg)]


def shown(value: Any) -> str:
    """A value as a recipe would write it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
