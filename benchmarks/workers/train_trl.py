"""SFT, DPO and GRPO by TRL's trainers, which are kept and asked to train again."""

from __future__ import annotations

import tempfile
from typing import Any

from serve import serve


def prepare(settings: dict[str, Any]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["weights"]))
    shared = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": settings["device"] == "cpu",
        "bf16": settings["autocast"],
        "learning_rate": 1e-6,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": settings["micro_batch"],
        "gradient_accumulation_steps": settings["accumulate"],
        "num_train_epochs": 1,
        "max_grad_norm": 1.0,
        "dataloader_pin_memory": False,
    }
    trainer = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}[settings["stage"]](
        settings, shared, model, tokenizer, Dataset
    )

    def work() -> dict[str, float]:
        trainer.train()
        rows = settings["rows"]
        return {"rows": len(rows), "pairs": len(rows), "completions": len(rows) * settings.get("samples", 1)}

    return work


def _turns(row: dict[str, Any], answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        answer: [
            {
                "role": "assistant",
                "content": row["answer" if answer in ("completion", "chosen") else "rejected"],
            }
        ],
    }


def _sft(settings: dict[str, Any], shared: dict[str, Any], model: Any, tokenizer: Any, datasets: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    data = datasets.from_list([_turns(row, "completion") for row in settings["rows"]])
    args = SFTConfig(**shared, max_length=4096, **settings.get("extra", {}))
    return SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def _dpo(settings: dict[str, Any], shared: dict[str, Any], model: Any, tokenizer: Any, datasets: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    data = datasets.from_list([_turns(row, "chosen") | _turns(row, "rejected") for row in settings["rows"]])
    args = DPOConfig(**shared, beta=0.1, max_length=4096, **settings.get("extra", {}))
    return DPOTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def _grpo(settings: dict[str, Any], shared: dict[str, Any], model: Any, tokenizer: Any, datasets: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    def right(completions: list[Any], truth: list[str], **_: Any) -> list[float]:
        return [
            float(t in completion[0]["content"]) for completion, t in zip(completions, truth, strict=True)
        ]

    data = datasets.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "truth": row["answer"].split("####")[-1].strip(),
            }
            for row in settings["rows"]
        ]
    )
    args = GRPOConfig(
        **shared,
        num_generations=settings["samples"],
        max_completion_length=settings["new_tokens"],
        max_steps=1,
        beta=0.0,
        temperature=1.0,
        **settings.get("extra", {}),
    )
    return GRPOTrainer(
        model=model, reward_funcs=right, args=args, train_dataset=data, processing_class=tokenizer
    )


if __name__ == "__main__":
    serve(prepare)
