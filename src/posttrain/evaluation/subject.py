"""The model that is measured: its tokenizer at once, its weights when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.data.render import Renderer
from posttrain.errors import RecipeError
from posttrain.model.fingerprint import fingerprint
from posttrain.model.load import load_model, load_tokenizer, pick_device, pick_dtype
from posttrain.model.resolve import resolve

if TYPE_CHECKING:
    from posttrain.rollout.engine import Engine
    from posttrain.runtime.local import FrozenScorer


class Measurable(Protocol):
    """What a benchmark is run on."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    @property
    def renderer(self) -> Renderer:
        """Its chat template and tokenizer."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the outputs depend on besides the task, as JSON."""
        ...

    @property
    def context_tokens(self) -> int:
        """Positions the model was made for."""
        ...

    @property
    def engine(self) -> Engine:
        """Generates, with the weights loaded."""
        ...

    @property
    def scorer(self) -> FrozenScorer:
        """Gives exact log-probabilities."""
        ...


@dataclass(frozen=True, slots=True)
class HeldModel:
    """The model whose weights an engine holds right now, such as the half-trained one of a stage."""

    name: str
    engine: Engine
    renderer: Renderer
    identity: Mapping[str, Any]

    @property
    def context_tokens(self) -> int:
        """Positions the model was made for."""
        return self.engine.max_positions

    @property
    def scorer(self) -> FrozenScorer:
        """There is none: an engine generates. RecipeError."""
        raise RecipeError(f"{self.name} is measured by its sampling engine, which gives no log-probabilities")


class Subject:
    """A model by name (a folder, a built-in name or a hub id), read through its own chat template.

    `chat_template` replaces the template, for models that have none. The engine and the scorer hold a copy of
    the weights each; `release` lets go of both. ModelError when there is no such model.
    """

    def __init__(
        self, name: str, *, chat_template: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> None:
        self.name = name
        self.folder = resolve(name)
        self.renderer = Renderer(load_tokenizer(self.folder), chat_template)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self._chat_template = chat_template
        self._engine: Engine | None = None
        self._scorer: FrozenScorer | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the outputs depend on besides the task, as JSON: weights, template, precision, device."""
        return {
            "sha256": fingerprint(self.folder),
            "template_sha256": self.renderer.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
        }

    @cached_property
    def context_tokens(self) -> int:
        """Positions the model was made for."""
        from transformers import AutoConfig

        return int(AutoConfig.from_pretrained(self.folder).max_position_embeddings)

    @property
    def engine(self) -> Engine:
        """The generator, loaded when it is first asked for."""
        if self._engine is None:
            from posttrain.rollout.open import open_engine

            self.release()
            self._engine, _ = open_engine(
                self.name,
                chat_template=self._chat_template,
                device=str(self.device),
                compute_dtype=str(self.dtype).removeprefix("torch."),
            )
        return self._engine

    @property
    def scorer(self) -> FrozenScorer:
        """Exact log-probabilities, loaded when they are first asked for."""
        if self._scorer is None:
            from posttrain.runtime.local import FrozenScorer

            self.release()
            module = load_model(self.folder, dtype=self.dtype, device=self.device)
            self._scorer = FrozenScorer(module, compute_dtype=self.dtype)
        return self._scorer

    def release(self) -> None:
        """Let go of the weights: of two copies one is enough at a time."""
        self._engine = self._scorer = None
