"""Recipes from files, and back."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.config.mistakes import explain
from posttrain.config.overrides import apply_overrides
from posttrain.config.recipe import Recipe
from posttrain.config.yaml_text import read_yaml, write_yaml
from posttrain.errors import RecipeError

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the installed package."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the YAML file `path`, with `key.path=value` overrides put in.

    Raises RecipeError, which names the file and line or the override, for a file that cannot be read,
    text that is not YAML, a key that does not exist, and a value of the wrong type or out of range.
    """
    document = read_yaml(_read_text(path), str(path))
    if document.value is None:
        raise RecipeError(f"{path} is empty; a recipe has at least name, model and stages")
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{path} holds {type(document.value).__name__} where a recipe has keys such as name and stages"
        )
    document = apply_overrides(document, overrides)
    try:
        return Recipe.model_validate(document.value)
    except ValidationError as error:
        raise explain(error, document) from None


def dump_recipe(recipe: Recipe) -> str:
    """YAML text of every setting, defaults included, that loads back to an equal recipe."""
    values = recipe.model_dump(mode="json")
    for stage in values["stages"]:
        for key in [key for key, value in stage.items() if value is None]:
            del stage[key]
    return write_yaml(values)


def recipe_folders() -> tuple[Path, ...]:
    """Where a recipe given by name is looked for: here first, then beside the package."""
    candidates = (Path("recipes"), PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")
    return tuple(folder for folder in candidates if folder.is_dir())


def list_recipes() -> dict[str, Path]:
    """Names that `find_recipe` knows, with their files."""
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def find_recipe(text: str) -> Path:
    """The file of a recipe given by path or by name; RecipeError with the nearest name if there is none."""
    path, known = Path(text), list_recipes()
    if path.is_file():
        return path
    if text in known:
        return known[text]
    if path.suffix in (".yaml", ".yml") or "/" in text or path.is_dir():
        raise RecipeError(f"there is no recipe file {text}{'; it is a folder' if path.is_dir() else ''}")
    near = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
    raise RecipeError(f"there is no recipe {text!r}; {hint}")


def recipe_descriptions() -> list[tuple[str, Path, str]]:
    """Name, file and one sentence of every recipe that can be given by name."""
    rows = []
    for name, path in list_recipes().items():
        value: Any = read_yaml(_read_text(path), str(path)).value
        about = value.get("description", "") if isinstance(value, dict) else ""
        rows.append((name, path, str(about)))
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe file {path}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; give a recipe file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}); is it a recipe?") from None
    except PermissionError:
        raise RecipeError(f"{path} cannot be read: permission denied") from None
