"""Fixtures that several areas share: tiny models, the data folder, fixed seeds, one thread."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch and numpy read it: same sums in the same order everywhere
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the hub
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("posttrain", deadline=None, derandomize=True)
settings.load_profile("posttrain")

REPOSITORY = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the 135M model downloads it, so it carries the `download` marker."""
    for item in items:
        if "smollm2_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.download)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Each test starts from the same global random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer random Llama with tied embeddings, ChatML, pad == EOS. Read only."""
    from posttrain.model.tiny import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_olmo2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer random OLMo 2 with untied embeddings, the Tülu template and a BOS. Read only."""
    from posttrain.model.tiny import tiny_olmo2

    return tiny_olmo2(tmp_path_factory.mktemp("models") / "tiny-olmo2")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct in the user's cache; fetched by the first test that needs it. Read only."""
    from posttrain.model.resolve import resolve

    return resolve("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def steady_products() -> bool:
    """Whether a row of the learner's bfloat16 products is the same to the bit among few rows and among many.

    Without the kernels oneDNN sums in another order for some numbers of rows where it has AMX, and what follows is
    right to bfloat16's rounding only.
    """
    import torch

    from posttrain.model.ops import Weight

    stream = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(n, 576, generator=stream).bfloat16() for n in (2048, 960))
    by = Weight(weight, torch.bfloat16)
    whole = by.of(rows)
    return all(torch.equal(by.of(rows[:n]), whole[:n]) for n in (1, 4, 8, 17, 32, 64, 100, 200, 500))


@pytest.fixture(scope="session")
def posttrain_data() -> Path:
    """The data folder: $POSTTRAIN_DATA, else shared/data beside the repository."""
    folder = Path(os.environ.get("POSTTRAIN_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; name one in POSTTRAIN_DATA")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(request, monkeypatch, tmp_path_factory):
    """Tests keep out of the user's cache, but for those that need the model in it."""
    if "smollm2_dir" not in request.fixturenames:
        monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
