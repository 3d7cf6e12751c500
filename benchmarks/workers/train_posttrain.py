"""SFT, DPO and GRPO as `posttrain run` does them: the stages' own loops on a learner that stays."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from serve import serve


def prepare(settings: dict[str, Any]) -> Any:
    import torch
    from rich.console import Console

    from posttrain.data.render import Renderer
    from posttrain.model.load import load_model, load_tokenizer, pick_dtype
    from posttrain.rollout.open import engine_for
    from posttrain.runtime.local import FrozenScorer, LocalLearner
    from posttrain.train.checkpoint import Checkpoints
    from posttrain.train.metrics import MetricsLog
    from posttrain.train.progress import Progress

    device = torch.device(settings["device"])
    dtype = pick_dtype(settings["dtype"], device)
    start = Path(settings["model"])
    renderer = Renderer(load_tokenizer(start))

    def learner() -> LocalLearner:
        return LocalLearner(load_model(start, dtype=torch.float32, device=device), compute_dtype=dtype)

    def common(folder: Path, progress: Any, total: int) -> dict[str, Any]:
        return {
            "seed": 1,
            "max_tokens": settings["max_tokens"],
            "log": MetricsLog(folder / "metrics.jsonl"),
            "checkpoints": Checkpoints(folder / "checkpoints", every=None),
            "track": progress.track("stage", total),
        }

    made = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}[settings["stage"]](
        settings,
        renderer=renderer,
        learner=learner(),
        reference=lambda: FrozenScorer(load_model(start, dtype=dtype, device=device), compute_dtype=dtype),
        engine=lambda: engine_for(
            load_model(start, dtype=dtype, device=device),
            renderer,
            dtype=dtype,
            device=device,
            cache_gib=settings["cache_gib"],
        ),
        common=common,
    )

    def work() -> dict[str, float]:
        folder = Path(tempfile.mkdtemp())
        try:
            with Progress(Console(file=io.StringIO())) as progress:
                return made(folder, progress)
        finally:
            shutil.rmtree(folder)

    return work


def _conversation(row: dict[str, Any], number: int, answer: str) -> Any:
    from posttrain.records import Conversation, Message

    return Conversation(
        f"{answer}{number}", (Message("user", row["question"]), Message("assistant", row[answer]))
    )


def _sft(settings: dict[str, Any], *, renderer: Any, learner: Any, common: Any, **_: Any) -> Any:
    from posttrain.config.sft import SFT
    from posttrain.data.rows import sft_rows
    from posttrain.train.sft import train_sft

    chats = [_conversation(row, number, "answer") for number, row in enumerate(settings["rows"])]
    rows, _dropped = sft_rows(chats, renderer, max_tokens=4096)
    cfg = SFT(data=[{"path": "x"}], epochs=1, batch_rows=settings["batch"], learning_rate=1e-6)

    def work(folder: Path, progress: Any) -> dict[str, float]:
        train_sft(learner, rows, cfg, **common(folder, progress, 1))
        return {"tokens": sum(len(row.ids) for row in rows), "rows": len(rows)}

    return work


def _dpo(
    settings: dict[str, Any], *, renderer: Any, learner: Any, reference: Any, common: Any, **_: Any
) -> Any:
    from posttrain.config.dpo import DPO
    from posttrain.data.pairs import pair_rows
    from posttrain.records import Preference
    from posttrain.train.dpo import reference_sums, train_dpo

    preferences = [
        Preference(
            str(number), *(_conversation(row, number, side).messages for side in ("answer", "rejected"))
        )
        for number, row in enumerate(settings["rows"])
    ]
    pairs, _dropped = pair_rows(preferences, renderer, max_tokens=4096)
    cfg = DPO(
        data=[{"path": "x"}],
        epochs=1,
        batch_pairs=settings["batch"],
        learning_rate=1e-6,
        loss="dpo",
        beta=0.1,
    )
    frozen = reference()

    def work(folder: Path, progress: Any) -> dict[str, float]:
        track = progress.track("reference", 2 * len(pairs))
        references = reference_sums(frozen, pairs, max_tokens=settings["max_tokens"], track=track)
        train_dpo(learner, pairs, references, cfg, **common(folder, progress, 1))
        return {"pairs": len(pairs), "tokens": sum(len(row.ids) for pair in pairs for row in pair)}

    return work


def _grpo(
    settings: dict[str, Any], *, renderer: Any, learner: Any, engine: Any, common: Any, **_: Any
) -> Any:
    from posttrain.config.grpo import GRPO
    from posttrain.records import Message, Problem
    from posttrain.train.grpo import train_grpo

    problems = [
        Problem(
            str(number), (Message("user", row["question"]),), row["answer"].split("####")[-1].strip(), "gsm8k"
        )
        for number, row in enumerate(settings["rows"])
    ]
    cfg = GRPO(
        problems=[{"path": "x"}],
        steps=1,
        prompts_per_step=len(problems),
        samples_per_prompt=settings["samples"],
        mini_batches=1,
        max_new_tokens=settings["new_tokens"],
        learning_rate=1e-6,
        kl_coefficient=0.0,
        no_stop_score=None,
        max_logprob_difference_nats=None,
    )
    sampler = engine()

    def work(folder: Path, progress: Any) -> dict[str, float]:
        train_grpo(
            learner,
            sampler,
            None,
            renderer,
            problems,
            cfg,
            rollouts=folder / "rollouts",
            **common(folder, progress, 1),
        )
        return {"completions": float(len(problems) * settings["samples"])}

    return work


if __name__ == "__main__":
    serve(prepare)
