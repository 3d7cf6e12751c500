"""The tiny model, opened once."""

from __future__ import annotations

import pytest

from posttrain.data.render import Renderer
from posttrain.rollout.engine import Engine
from posttrain.rollout.open import open_engine


@pytest.fixture(scope="session")
def opened(tiny_llama_dir) -> tuple[Engine, Renderer]:
    """A float32 engine, so that its answers do not depend on the machine, and its renderer."""
    return open_engine(str(tiny_llama_dir), compute_dtype="float32")
