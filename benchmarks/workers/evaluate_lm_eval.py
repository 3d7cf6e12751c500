"""GSM8K by lm-evaluation-harness: its evaluator and its Hugging Face backend, on a task from a local file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve import serve

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def prepare(settings: dict[str, Any]) -> Any:
    started = time.perf_counter()
    import torch

    torch.set_num_threads(settings["threads"])
    evaluate = evaluator(settings)
    model = _recorded(settings)
    evaluate(model, settings["samples"][:2], chat=True)  # warm
    load_seconds = time.perf_counter() - started

    def work() -> dict[str, float]:
        model.rows.clear()
        started = time.perf_counter()
        items = evaluate(model, settings["samples"], chat=True)
        seconds = time.perf_counter() - started
        for row, item in zip(model.rows, items.values(), strict=True):
            item |= row
        Path(settings["out"]).write_text(json.dumps(items), encoding="utf-8")
        tokens = sum(len(item["ids"]) for item in items.values())
        return {"seconds": seconds, "load_seconds": load_seconds, "tokens": tokens}

    return work


def evaluator(settings: dict[str, Any]) -> Callable[..., dict[str, dict[str, Any]]]:
    """What evaluates a model of the harness on documents, by their places, and says what each filter found."""
    folder = Path(settings["folder"])
    os.environ |= OFFLINE | {"HF_DATASETS_CACHE": str(folder / "datasets")}
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    path, name = _write_task(settings, folder), settings["changes"]["task"]
    tasks = TaskManager(include_defaults=False)

    def run(model: Any, samples: list[int], *, chat: bool) -> dict[str, dict[str, Any]]:
        found = evaluate(
            lm=model,
            task_dict=tasks.load([str(path)]),
            samples={name: samples},
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=0,
        )
        return _items(found["samples"][name])

    return run


def _write_task(settings: dict[str, Any], folder: Path) -> Path:
    """The harness's own definition, included, with `changes` in place of its parts and `reworded` filters."""
    import lm_eval
    import yaml

    own = Path(lm_eval.__file__).parent / "tasks" / settings["definition"]
    filters = json.dumps(yaml.safe_load(own.read_text(encoding="utf-8"))["filter_list"])
    for before, after in settings["reworded"].items():
        filters = filters.replace(before, after)
    task = {"include": str(own), **settings["changes"], "filter_list": json.loads(filters)}
    path = folder / f"{task['task']}.yaml"
    path.write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    return path


def _recorded(settings: dict[str, Any]) -> Any:
    """The harness's Hugging Face backend, which also keeps the token ids that it read and wrote."""
    from lm_eval.models.huggingface import HFLM

    class Recorded(HFLM):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            texts = super().generate_until(requests, disable_tqdm=True)
            by_prompt = {tuple(row["prompt_ids"]): row for row in self.rows}
            self.rows[:] = [by_prompt[tuple(self.tok_encode(request.args[0]))] for request in requests]
            return texts

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
            out = super()._model_generate(context, max_length, stop, **kwargs)
            begins = kwargs["attention_mask"].argmax(1).tolist()  # after the padding on the left
            for row, begin in zip(out.tolist(), begins, strict=True):
                ids = row[context.shape[1] :]
                if self.eot_token_id in ids:
                    ids = ids[: ids.index(self.eot_token_id) + 1]
                self.rows.append({"prompt_ids": row[begin : context.shape[1]], "ids": ids})
            return out

    size = settings["batch_size"]
    model = Recorded(
        pretrained=settings["model"],
        dtype=settings["dtype"],
        device="cpu",
        batch_size=size if size == "auto" else int(size),
        max_length=settings["context_tokens"],
        attn_implementation=settings["attention"],
    )
    model.rows = []
    return model


def _items(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By document: the output, and what each filter read in it with its verdict."""
    items: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["doc_id"]):
        item = items.setdefault(str(row["doc_id"]), {"output": row["resps"][0][0]})
        item[row["filter"]] = {"read": row["filtered_resps"][0], "correct": bool(row["exact_match"])}
    return items


if __name__ == "__main__":
    serve(prepare)
