"""What the learning tests share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import pytest
import torch
from rich.console import Console

from posttrain.data.render import Renderer
from posttrain.model.load import load_model, load_tokenizer
from posttrain.runtime.local import LocalLearner
from posttrain.train.progress import Progress, Track

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tiny matrices are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture
def learner(tiny_llama_dir) -> LocalLearner:
    """As a stage makes it."""
    module = load_model(tiny_llama_dir, dtype=torch.float32, device=CPU)
    return LocalLearner(module, compute_dtype=torch.float32)


@pytest.fixture
def renderer(tiny_llama_dir) -> Renderer:
    return Renderer(load_tokenizer(tiny_llama_dir))


@pytest.fixture
def track() -> Iterator[Track]:
    with Progress(Console(file=io.StringIO())) as progress, progress.track("stage", 1) as opened:
        yield opened


@pytest.fixture
def reply(renderer, tmp_path) -> Callable[..., str]:
    """The most likely reply of a model to a user's message, by transformers' own `generate`."""

    def generate(module, text: str, *, max_new_tokens: int = 12) -> str:
        from posttrain.records import Message

        prompt = torch.tensor([renderer.prompt([Message("user", text)])])
        ids = module.eval().generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
        return renderer.tokenizer.decode(ids[0, prompt.shape[1] :])

    return generate
