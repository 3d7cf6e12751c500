"""A model by name as an engine that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from posttrain.data.render import Renderer
from posttrain.model.load import load_model, load_tokenizer, pick_device, pick_dtype
from posttrain.model.resolve import resolve
from posttrain.rollout.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def engine_for(
    model: PreTrainedModel,
    renderer: Renderer,
    *,
    dtype: torch.dtype,
    device: torch.device,
    cache_gib: float = 2.0,
    drafts: bool = False,
) -> Engine:
    """An engine for models of this shape; load weights into it before use."""
    return Engine(
        model.config,
        stop_ids=renderer.stop_ids,
        decode=renderer.decode,
        dtype=dtype,
        device=device,
        cache_gib=cache_gib,
        drafts=drafts,
    )


def open_engine(
    name: str,
    *,
    chat_template: str | None = None,
    device: str = "auto",
    compute_dtype: str = "auto",
) -> tuple[Engine, Renderer]:
    """The engine of the model called `name` (folder, built-in name or hub id), weights loaded, and its renderer."""
    folder: Path = resolve(name)
    where = pick_device(device)
    dtype = pick_dtype(compute_dtype, where)
    renderer = Renderer(load_tokenizer(folder), chat_template)
    model = load_model(folder, dtype=dtype, device=where)
    engine = engine_for(model, renderer, dtype=dtype, device=where, drafts=True)
    engine.load(model.state_dict(), version=0)
    return engine, renderer
