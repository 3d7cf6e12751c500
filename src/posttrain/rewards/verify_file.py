"""Scoring a file of replies: one row in, one row out, in order."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from posttrain.errors import DataError
from posttrain.records import Score
from posttrain.rewards.score import score_many
from posttrain.rewards.verifier import find_verifier

_CHUNK_ROWS = 4096


def verify_file(name: str, in_path: str | Path, out_path: str | Path) -> dict[str, Any]:
    """Score each row {"completion", "ground_truth"} of a JSON Lines file with the verifier `name`.

    Writes each row with value, verdict and reason added; a row that cannot be read keeps its place with
    verdict "error". Paths that end in .gz are compressed. Returns {"n": rows, "mean": mean value,
    "verdicts": counts, "seconds": time taken}. Raises RecipeError for an unknown verifier and DataError
    for a file that cannot be read or written.
    """
    source, target = Path(in_path), Path(out_path)
    find_verifier(name)
    if not source.is_file():
        raise DataError(f"{source} is not a file; give a .jsonl file of replies")
    if target.exists() and target.samefile(source):
        raise DataError(f"{target} is the input file; give another name for the output")
    started = time.perf_counter()
    verdicts: Counter[str] = Counter()
    total = 0.0
    try:
        with _open(source, "rt") as lines, _open(target, "wt") as out:
            chunk: list[str] = []
            for line in lines:
                chunk.append(line)
                if len(chunk) == _CHUNK_ROWS:
                    total += _verify(name, chunk, out, verdicts)
                    chunk = []
            total += _verify(name, chunk, out, verdicts)
    except (OSError, EOFError) as fault:
        raise DataError(f"{source} cannot be verified into {target}: {fault}") from fault
    count = verdicts.total()
    return {
        "n": count,
        "mean": total / count if count else 0.0,
        "verdicts": dict(sorted(verdicts.items())),
        "seconds": time.perf_counter() - started,
    }


def _open(path: Path, mode: str) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, mode, encoding="utf-8", errors="replace")  # type: ignore[return-value]
    return path.open(mode, encoding="utf-8", errors="replace")


def _verify(name: str, lines: list[str], out: IO[str], verdicts: Counter[str]) -> float:
    """Score and write the rows in `lines`; blank lines are no rows. Returns the sum of the values."""
    rows = [_read(line) for line in lines if line.strip()]
    good = [index for index, (_, fault) in enumerate(rows) if fault is None]
    scored = score_many([(name, rows[i][0]["completion"], rows[i][0]["ground_truth"]) for i in good])
    scores = dict(zip(good, scored, strict=True))
    total = 0.0
    for index, (row, fault) in enumerate(rows):
        score = scores.get(index) or Score(0.0, "error", fault or "")
        result = {"value": score.value, "verdict": score.verdict, "reason": score.reason}
        out.write(json.dumps({**row, **result}) + "\n")
        verdicts[score.verdict] += 1
        total += score.value
    return total


def _read(line: str) -> tuple[dict[str, Any], str | None]:
    """The row, and what is wrong with it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        return {"line": line.rstrip("\n")}, f"the row is not JSON: {fault}"
    if not isinstance(row, dict):
        return {"line": line.rstrip("\n")}, "the row is not an object"
    if not isinstance(row.get("completion"), str):
        return row, "the row has no text under 'completion'"
    if "ground_truth" not in row:
        return row, "the row has no 'ground_truth'"
    return row, None
