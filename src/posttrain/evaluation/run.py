"""Answer problems with a model and score the answers: one JSON line a sample, resumable at any of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.render import Renderer
from posttrain.evaluation.journal import claim
from posttrain.records import Completion, Problem
from posttrain.rewards.score import score_many
from posttrain.rollout.sampler import Request, Sampling
from posttrain.train.folder import write_text, writing
from posttrain.train.seeds import seed_of

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.config.parts import Evaluation, Source
    from posttrain.rollout.engine import Engine
    from posttrain.train.progress import Progress, Track


def evaluate(
    engine: Engine,
    renderer: Renderer,
    problems: Sequence[Problem],
    *,
    sampling: Sampling,
    samples_per_problem: int,
    seed: int,
    out: Path,
    track: Track,
) -> list[dict[str, Any]]:
    """Sample and score; the rows are in `out` in the order they finished and returned in that of the problems.

    Each sample's stream depends on the seed, the problem's id and the sample alone, so models answer with the
    same randomness, and what an interrupted run left in `out` is kept.
    """
    rows = _kept(out, problems, samples_per_problem)
    done = {row["problem_id"] for row in rows}
    track.advance(len(done))
    waiting: dict[int, Problem] = {}
    for problem in problems:
        if problem.id not in done:
            seeds = tuple(seed_of(seed, problem.id, sample) for sample in range(samples_per_problem))
            waiting[engine.submit(Request(renderer.prompt(problem.messages), seeds), sampling)] = problem
    with writing(out):
        write_text(out, "".join(_line(row) for row in rows))  # a kill here must not cost what was kept
        with out.open("a", encoding="utf-8") as file:
            while engine.busy:
                for handle, completions in engine.step()[1].items():
                    fresh = _scored(waiting.pop(handle), completions)
                    file.writelines(_line(row) for row in fresh)
                    file.flush()
                    rows += fresh
                    track.advance(1, tokens=sum(row["num_tokens"] for row in fresh))
    place = {problem.id: number for number, problem in enumerate(problems)}
    return sorted(rows, key=lambda row: (place[row["problem_id"]], row["sample"]))


def answer(
    engine: Engine,
    renderer: Renderer,
    problems: Sequence[Problem],
    settings: Evaluation,
    *,
    out: Path,
    progress: Progress,
    label: str,
) -> list[dict[str, Any]]:
    """`evaluate` on a recipe's `settings`, with a bar called `label`; `problems` are all of its source."""
    used = problems[settings.used]
    with progress.track(label, len(used), unit="problems") as track:
        rows = evaluate(
            engine,
            renderer,
            used,
            sampling=Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens),
            samples_per_problem=settings.samples_per_problem,
            seed=settings.seed,
            out=out,
            track=track,
        )
        track.advance(0, metrics={"score": sum(row["value"] for row in rows) / len(rows)})
    return rows


def _scored(problem: Problem, completions: Sequence[Completion]) -> list[dict[str, Any]]:
    scores = score_many([(problem.verifier, c.text, problem.ground_truth) for c in completions])
    return [
        {
            "problem_id": problem.id,
            "sample": sample,
            "kind": problem.source,
            "prompt": problem.messages[-1].content,
            "output": completion.text,
            "num_tokens": len(completion.ids),
            "stop_reason": completion.stop_reason,
            "value": score.value,
            "verdict": score.verdict,
            "reason": score.reason,
        }
        for sample, (completion, score) in enumerate(zip(completions, scores, strict=True))
    ]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace").decode() + "\n"


def _kept(out: Path, problems: Sequence[Problem], samples_per_problem: int) -> list[dict[str, Any]]:
    """Rows of problems that an earlier run finished whole; a line torn by a kill is not one."""
    if not out.is_file():
        return []
    by_problem: dict[str, list[dict[str, Any]]] = {problem.id: [] for problem in problems}
    # at newlines only: JSON text may hold U+2028, which splitlines() would cut at
    for line in out.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            by_problem[row["problem_id"]].append(row)
        except (ValueError, KeyError, TypeError):
            continue
    return [row for rows in by_problem.values() if len(rows) == samples_per_problem for row in rows]


def evaluate_model(
    model: str,
    source: Source,
    *,
    num_problems: int | None,
    samples_per_problem: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    out: Path,
    console: Console,
) -> dict[str, Any]:
    """`posttrain eval`: any model on any problems, with the error of the mean, every sample in `out`.

    Goes on with what an interrupted run left in `out`; CheckpointError if that is of another model or settings.
    """
    from posttrain.data.gather import gather_problems
    from posttrain.evaluation.statistics import estimate
    from posttrain.model.fingerprint import fingerprint
    from posttrain.model.resolve import resolve
    from posttrain.rollout.open import open_engine
    from posttrain.train.progress import Progress

    problems, record = gather_problems([source], seed=0)
    problems = problems[:num_problems]
    settings = {
        "model": fingerprint(resolve(model)),
        "problems": record.parts[0].sha256,
        "samples_per_problem": samples_per_problem,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    claim(out, settings)
    engine, renderer = open_engine(model)
    with Progress(console) as progress, progress.track("evaluating", len(problems), unit="problems") as track:
        rows = evaluate(
            engine,
            renderer,
            problems,
            sampling=Sampling(temperature=temperature, max_new_tokens=max_new_tokens),
            samples_per_problem=samples_per_problem,
            seed=seed,
            out=out,
            track=track,
        )
    found = estimate([row["value"] for row in rows], [row["problem_id"] for row in rows])
    return {
        "model": model,
        "problems": record.parts[0].name,
        "n": len(problems),
        "samples_per_problem": samples_per_problem,
        "mean_score": found.mean,
        "stderr": found.stderr,
        "out": str(out),
    }
