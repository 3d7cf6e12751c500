"""Rollouts as a Parquet table: everything that was sampled, with its reward and the reason for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.errors import CheckpointError
from posttrain.records import Completion, Group, Message, Problem, Rollout, Score
from posttrain.train.folder import writing


def write_rollouts(
    target: Path | BinaryIO,
    groups: Sequence[Group],
    *,
    step: int,
    advantages: Sequence[Sequence[float | None]] | None = None,
) -> None:
    """Write `groups`, one row per rollout, to an open file, or to a path whole or not at all.

    `advantages` is (P, G); None for what was not trained on.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        for sample, rollout in enumerate(group.rollouts):
            advantage = None if advantages is None else advantages[place][sample]
            rows.append(_row(rollout, step, place, sample, advantage))
    table = pa.Table.from_pylist(rows, schema=_schema())
    if not isinstance(target, Path):
        pq.write_table(table, target, compression="zstd")
        return
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(target)


def read_rollouts(source: Path | BinaryIO) -> list[Group]:
    """The groups that `write_rollouts` wrote; CheckpointError if the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(source).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise CheckpointError(f"{source} is damaged ({error}); delete it and run again") from error
    groups: list[tuple[Problem, list[Rollout]]] = []
    for row in rows:
        if row["place"] == len(groups):
            messages = tuple(Message(**turn) for turn in json.loads(row["messages"]))
            truth = json.loads(row["ground_truth"])
            groups.append((Problem(row["problem_id"], messages, truth, row["verifier"], row["source"]), []))
        problem, rollouts = groups[-1]
        rollouts.append(_rollout(row, problem))
    return [Group(problem, tuple(rollouts)) for problem, rollouts in groups]


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    return pa.schema(
        [
            *(("step", number), ("place", number), ("problem_id", text), ("sample", number)),
            *(("prompt", text), ("completion", text)),
            *(("prompt_ids", pa.list_(pa.int32())), ("ids", pa.list_(pa.int32()))),
            ("logprobs", pa.list_(pa.float32())),
            *(("stop_reason", text), ("weights_version", number)),
            *(("reward", pa.float64()), ("value", pa.float64()), ("verdict", text), ("reason", text)),
            *(("parts", text), ("advantage", pa.float64()), ("verifier", text), ("ground_truth", text)),
            *(("source", text), ("messages", text)),
        ]
    )


def _row(rollout: Rollout, step: int, place: int, sample: int, advantage: float | None) -> Mapping[str, Any]:
    problem, completion, score = rollout.problem, rollout.completion, rollout.score
    row = {
        "step": step,
        "place": place,
        "problem_id": problem.id,
        "sample": sample,
        "prompt": problem.messages[-1].content,
        "completion": completion.text,
        "prompt_ids": rollout.prompt_ids,
        "ids": completion.ids,
        "logprobs": completion.logprobs,
        "stop_reason": completion.stop_reason,
        "weights_version": completion.weights_version,
        "reward": rollout.reward,
        "value": score.value,
        "verdict": score.verdict,
        "reason": score.reason,
        "parts": json.dumps(dict(score.parts)),
        "advantage": advantage,
        "verifier": problem.verifier,
        "ground_truth": json.dumps(problem.ground_truth),
        "source": problem.source,
        "messages": json.dumps([{"role": m.role, "content": m.content} for m in problem.messages]),
    }
    # half of a surrogate pair, which JSON data may hold, is no text to Parquet
    return {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in row.items()}


def _rollout(row: Mapping[str, Any], problem: Problem) -> Rollout:
    completion = Completion(
        tuple(row["ids"]),
        tuple(row["logprobs"]),
        row["stop_reason"],
        row["completion"],
        row["weights_version"],
    )
    score = Score(row["value"], row["verdict"], row["reason"], json.loads(row["parts"]))
    return Rollout(problem, tuple(row["prompt_ids"]), completion, score, row["reward"])
