"""GSM8K as `posttrain eval` runs it: the task's documents through the engine to a journal, and the journal scored."""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from serve import serve


def prepare(settings: dict[str, Any]) -> Any:
    started = time.perf_counter()
    import torch

    torch.set_num_threads(settings["threads"])
    from posttrain.evaluation.registry import open_task
    from posttrain.evaluation.subject import Subject
    from posttrain.rollout.sampler import Request, Sampling

    data = Path(settings["data"])
    subject = Subject(settings["model"], device="cpu", dtype=settings["dtype"])
    task = with_budget(open_task("gsm8k"), settings["new_tokens"])
    engine = Recorded(subject.engine)

    def run(samples: list[int]) -> dict[str, dict[str, Any]]:
        documents = task.documents(data)
        return _evaluate(engine, subject.renderer, task, [documents[place] for place in samples], data)

    run(settings["samples"][:2])
    load_seconds = time.perf_counter() - started

    def work() -> dict[str, float]:
        # a run must not find the exemplars of the one before
        engine.generate([Request((0,), (0,))], Sampling(max_new_tokens=1))
        engine.rows.clear()
        started = time.perf_counter()
        items = run(settings["samples"])
        seconds = time.perf_counter() - started
        for item in items.values():
            item |= engine.rows[item.pop("sha256")]
        Path(settings["out"]).write_text(json.dumps(items), encoding="utf-8")
        tokens = sum(len(item["ids"]) for item in items.values())
        return {"seconds": seconds, "load_seconds": load_seconds, "tokens": tokens}

    return work


def with_budget(task: Any, new_tokens: int) -> Any:
    """`task` with at most `new_tokens` of output; prompt, stops and rule stay its own."""
    from dataclasses import replace

    return replace(task, decoding=replace(task.decoding, max_new_tokens=new_tokens))


class Recorded:
    """The engine, which also keeps the token ids of what it read and wrote, by the prompt's hash."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._prompts: dict[int, list[int]] = {}
        self.rows: dict[str, dict[str, list[int]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: Any, sampling: Any) -> int:
        handle = self._engine.submit(request, sampling)
        self._prompts[handle] = list(request.prompt_ids)
        return handle

    def step(self) -> Any:
        from posttrain.evaluation.prompting import Rendered

        tokens, finished = self._engine.step()
        for token in tokens:
            if token.completion is not None:
                prompt = self._prompts.pop(token.handle)
                key = Rendered("", tuple(prompt), 0).sha256
                self.rows[key] = {"prompt_ids": prompt, "ids": list(token.completion.ids)}
        return tokens, finished


def _evaluate(
    engine: Any, renderer: Any, task: Any, documents: list[Any], data: Path
) -> dict[str, dict[str, Any]]:
    """By document: the output, the number read in it, the verdict, and the hash of the prompt's ids."""
    from rich.console import Console

    from posttrain.evaluation.generation import generate
    from posttrain.evaluation.journal import Journal
    from posttrain.evaluation.scoring import score_outputs
    from posttrain.train.progress import Progress

    with tempfile.TemporaryDirectory() as folder, Progress(Console(file=io.StringIO())) as progress:
        track = progress.track(task.name, len(documents))
        with Journal(Path(folder) / "gsm8k.jsonl", {}) as journal:
            generate(engine, renderer, task, documents, data=data, journal=journal, seed=0, track=track)
            rows = {row["id"]: row for row in journal.rows()}
    scoring = score_outputs(task, documents, [(d, (rows[d.id]["output"],)) for d in documents])
    return {
        one.document.id: {
            "output": rows[one.document.id]["output"],
            "target": one.document.fields["gold"],
            "exact_match": {"read": one.score.extracted, "correct": one.score.metrics["exact_match"] == 1},
            "sha256": rows[one.document.id]["prompt_ids_sha256"],
        }
        for one in scoring.scored
    }


if __name__ == "__main__":
    serve(prepare)
