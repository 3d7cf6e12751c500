"""The model and the data that every contestant gets."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from harness import random_model
from harness.race import ROOT
from posttrain.model.cache import cached_model
from posttrain.model.load import load_tokenizer
from posttrain.model.resolve import resolve

MODEL = "smollm2-135m-instruct"


def model_folder() -> str:
    """The 135M model, or what POSTTRAIN_BENCH_MODEL names; the random 1B is built in the cache when it is asked for."""
    name = os.environ.get("POSTTRAIN_BENCH_MODEL", MODEL)
    if name == random_model.NAME:
        return str(cached_model(name, random_model.build))
    return str(resolve(name))


def data_folder() -> Path:
    """The benchmark data (POSTTRAIN_DATA)."""
    return Path(os.environ.get("POSTTRAIN_DATA", ROOT.parent / "shared" / "data"))


def gsm8k(count: int, *, split: str = "train") -> list[dict[str, str]]:
    """The first `count` rows of GSM8K: question and answer."""
    for name in (f"gsm8k/{split}.jsonl", f"gsm8k/{split}.jsonl.gz"):
        path = data_folder() / name
        if path.exists():
            content = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
            return [json.loads(line) for line in content.decode().split("\n")[:count]]
    raise FileNotFoundError(f"no GSM8K below {data_folder()}; set POSTTRAIN_DATA to the data folder")


def chat_prompts(count: int) -> list[list[int]]:
    """Token ids of `count` GSM8K questions through the model's chat template."""
    tokenizer = load_tokenizer(Path(model_folder()))
    return [
        list(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
            )
        )
        for row in gsm8k(count)
    ]
