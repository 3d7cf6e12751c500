"""Where `posttrain generate` gets its prompts: the command line, a file, or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.errors import DataError, RecipeError


def read_prompts(given: Sequence[str], path: Path | None) -> list[str]:
    """At least one prompt: those `given`, or one a line, or the `prompt` of each row of a .jsonl file.

    Raises RecipeError where there is nothing to read or two places to read from; DataError, naming file
    and line, where a row has no prompt.
    """
    if given and path is not None:
        raise RecipeError("give prompts or --in, not both")
    if given:
        return list(given)
    if path is None and sys.stdin.isatty():
        raise RecipeError("give a prompt, --in FILE, or prompts on standard input, one a line")
    if path is not None and not path.is_file():
        raise DataError(f"there is no file {path}")
    text = sys.stdin.read() if path is None else path.read_text(encoding="utf-8")
    name = "standard input" if path is None else str(path)
    rows = path is not None and path.suffix == ".jsonl"
    # Split at newlines only: JSON text may hold U+2028, which splitlines() would cut at.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    prompts = list(_from_rows(lines, name)) if rows else [line.rstrip("\r") for _, line in lines]
    if not prompts:
        raise DataError(f"there are no prompts in {name}")
    return prompts


def _from_rows(lines: Sequence[tuple[int, str]], name: str) -> Iterator[str]:
    for number, line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise DataError(f"{name}:{number}: a row needs a `prompt` that is text")
        yield row["prompt"]
