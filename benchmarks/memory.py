"""Peak memory that `posttrain plan` predicts against what `posttrain run` takes, on this machine's CPU."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.race import write

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed blocks go back to the system, so that resident memory is what is in use."""
ENVIRONMENTS = {"pages given back": GIVEN_BACK, "as shipped": {}}
SHAPES = {
    "20M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4},
    "60M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8},
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
    },
}
KEYS = {"20M": (2, 32_000), "60M": (4, 32_000), "135M": (3, 49_152)}
"""Key heads and vocabulary."""
WORDS = [
    "apple",
    "boat",
    "chair",
    "dog",
    "egg",
    "fish",
    "green",
    "house",
    "ink",
    "jug",
    "king",
    "lamp",
    "moon",
    "nest",
    "owl",
    "pen",
    "queen",
    "river",
    "sun",
]


@dataclass(frozen=True)
class Case:
    """One measured configuration."""

    shape: str
    kind: str
    settings: dict[str, Any]
    micro_batch: int
    lora: bool = False
    runtime: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        longest = self.settings.get("max_tokens") or "{max_prompt_tokens}+{max_new_tokens}".format(
            **self.settings
        )
        extra = " LoRA" * self.lora + " checkpointing" * bool(self.runtime.get("gradient_checkpointing"))
        return f"{self.kind} {self.shape} {self.micro_batch}x{longest}{extra}"


def sft(rows: int, tokens: int) -> dict[str, Any]:
    return {"epochs": 1, "batch_rows": rows, "max_tokens": tokens}


def rollouts(prompt: int, new: int, **more: Any) -> dict[str, Any]:
    sizes = {"steps": 2, "prompts_per_step": 4, "mini_batches": 1, "max_prompt_tokens": prompt}
    return sizes | {"max_new_tokens": new, "max_logprob_difference_nats": None, "learning_rate": 1e-6} | more


CASES = (
    Case("20M", "sft", sft(8, 256), 1024),
    Case("60M", "sft", sft(4, 512), 1024),
    Case("60M", "sft", sft(4, 1024), 2048, runtime={"gradient_checkpointing": True}),
    Case("60M", "sft", sft(8, 512), 2048, lora=True),
    Case("60M", "grpo", rollouts(96, 64, samples_per_prompt=8), 1024),
    Case("60M", "grpo", rollouts(96, 64, samples_per_prompt=8), 1024, lora=True),
    Case("20M", "ppo", rollouts(96, 64, samples_per_prompt=4, value_start="policy", inner_epochs=1), 1024),
    Case("135M", "sft", sft(8, 512), 2048),
)


def build_model(path: Path, shape: str) -> None:
    """A random Llama stored in bfloat16, as models on the hub are, with the tiny tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.model.export import save_model
    from posttrain.model.tiny import tiny_llama

    kv_heads, vocab = KEYS[shape]
    config = SHAPES[shape] | {"num_key_value_heads": kv_heads, "vocab_size": vocab, "head_dim": 64}
    start = tiny_llama(path / "float32", max_position_embeddings=4096, initializer_range=0.02, **config)
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(start)
    save_model(
        path / "bfloat16",
        config=model.config,
        weights=model.state_dict(),
        tokenizer=tokenizer,
        renderer_stop_ids=[tokenizer.eos_token_id],
        chat_template=tokenizer.chat_template,
        dtype=torch.bfloat16,
        base_model="random",
    )


def write_rows(path: Path, model: Path, case: Case, count: int) -> None:
    """Rows of the case's longest length, to a token or two, that differ from their start on."""
    from posttrain.data.render import Renderer
    from posttrain.model.load import load_tokenizer
    from posttrain.records import Message

    renderer, draw = Renderer(load_tokenizer(model)), random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            system = Message("system", f"{number} {draw.choice(WORDS)} {draw.random()}")
            body: list[str] = []
            while True:
                words = Message("assistant" if case.kind == "sft" else "user", " ".join([*body, "so"]))
                if case.kind == "sft":
                    chat = [system, Message("user", "go"), words]
                    size, limit = len(renderer.conversation(chat, id="x").ids), case.settings["max_tokens"]
                else:
                    chat = [system, words]
                    size, limit = len(renderer.prompt(chat)), case.settings["max_prompt_tokens"]
                if size > limit:
                    break
                kept = chat
                body += draw.choices(WORDS, k=max(1, (limit - size) // 8))
            row: dict[str, Any] = {"messages": [{"role": m.role, "content": m.content} for m in kept]}
            if case.kind != "sft":
                row |= {"id": str(number), "dataset": "gsm8k", "ground_truth": "1"}
            file.write(json.dumps(row) + "\n")


def write_recipe(folder: Path, model: Path, case: Case) -> Path:
    """The recipe of the case, its rows beside it."""
    is_sft = case.kind == "sft"
    count = 2 * case.settings["batch_rows"] if is_sft else 8
    write_rows(folder / "rows.jsonl", model, case, count)
    source = [{"path": str(folder / "rows.jsonl")}]
    recipe: dict[str, Any] = {
        "name": "memory",
        "model": str(model),
        "output": str(folder / "run"),
        "runtime": {"device": "cpu", "max_tokens_per_micro_batch": case.micro_batch} | case.runtime,
        "stages": [{case.kind: {"data" if is_sft else "problems": source} | case.settings}],
    }
    if case.lora:
        recipe["lora"] = {"rank": 16}
    path = folder / "memory.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def measure(recipe: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Predicted and measured peak (GiB) of a run in a process of its own."""
    base = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env = base | environment | {"POSTTRAIN_CACHE": str(recipe.parent / "cache"), "GOMP_SPINCOUNT": "10000"}
    command = [sys.executable, "-m", "posttrain"]
    planned = subprocess.run(
        [*command, "plan", str(recipe), "--devices", "cpu", "--json"],
        env=env,
        check=True,
        capture_output=True,
    )
    stage = json.loads(planned.stdout)["stages"][0]
    output = recipe.parent / f"run-{len(environment)}"
    process = subprocess.Popen(
        [*command, "run", str(recipe), "--output", str(output)], env=env, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"posttrain run {recipe} ended with status {status}")
    metrics = next(output.glob("stages/01-*/metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in metrics]
    # a stage forgets the peak before it; what the system counts is the largest since then
    peak = max(usage.ru_maxrss / 2**20, *(step["memory/peak_rss_gib"] for step in steps))
    return {
        "predicted_gib": stage["peak_gib"],
        "measured_gib": round(peak, 3),
        "error": round(stage["peak_gib"] / peak - 1, 4),
        "phase": stage["peak_phase"],
        "parts_gib": stage["phases"][stage["peak_phase"]],
        "step_seconds": [round(step["time/step_seconds"], 2) for step in steps],
    }


def main() -> None:
    """Measure the cases whose name holds what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--out", default="memory")
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(case for case in CASES if args.only in case.name):
            model = Path(scratch) / case.shape
            if not model.exists():
                build_model(model, case.shape)
            folder = Path(scratch) / str(number)
            folder.mkdir()
            recipe = write_recipe(folder, model / "bfloat16", case)
            rows[case.name] = {name: measure(recipe, env) for name, env in ENVIRONMENTS.items()}
            for name, found in rows[case.name].items():
                shown = {key: found[key] for key in ("predicted_gib", "measured_gib", "error")}
                print(f"{case.name}, {name}: {shown}", flush=True)
    write(args.out, rows)


if __name__ == "__main__":
    main()
