"""One stage of a recipe: which kind it is, and that kind's settings."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.lora import LoRA
from posttrain.config.measure import Measure
from posttrain.config.parts import (
    FolderName,
    Part,
    Sources,
    Text,
    broken_rule,
)
from posttrain.config.ppo import PPO
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT

KINDS = ("sft", "dpo", "reward_model", "ppo", "grpo")
"""The keys of a stage that say what kind it is."""
Settings = SFT | DPO | RewardModel | PPO | GRPO


class Stage(Part):
    """One stage: exactly one kind, and a name if its kind says too little."""

    name: FolderName | None = Field(
        default=None, description="Name of the stage in folders and reports; null takes its kind."
    )
    start: Text | None = Field(
        default=None,
        description="What the stage starts from: an earlier stage, a folder or a hub id; null is the newest "
        "policy before it.",
    )
    lora: LoRA | None = Field(
        default=None,
        description="Train adapters in place of all weights; null takes the recipe's `lora`.",
    )
    measure: Measure | None = Field(
        default=None,
        description="What is measured while it trains, and which step is its result; null measures nothing and "
        "keeps the last.",
    )
    sft: SFT | None = Field(default=None, description="Supervised fine-tuning.")
    dpo: DPO | None = Field(default=None, description="Direct preference optimization.")
    reward_model: RewardModel | None = Field(
        default=None, description="A reward model; the policy stays as it is."
    )
    ppo: PPO | None = Field(
        default=None,
        description="Proximal policy optimization with a value model and verifiable rewards.",
    )
    grpo: GRPO | None = Field(
        default=None, description="Group-relative policy optimization with verifiable rewards."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = f"has {' and '.join(kinds)}; split it in two" if kinds else "has none"
            raise broken_rule(
                kinds[-1] if kinds else "",
                f"a stage is one of {', '.join(KINDS[:-1])} or {KINDS[-1]}, and this one {found}",
            )
        return self

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.measure is None:
            return self
        if self.reward_model is not None:
            raise broken_rule(
                "measure", "a reward model answers no problems; heldout_every_steps scores pairs instead"
            )
        settings, keep = self.settings, self.measure.keep
        if isinstance(settings, GRPO | PPO) and isinstance(keep, int) and keep > settings.num_steps:
            raise broken_rule(
                "measure", f"measure.keep is {keep}, and the stage has only {settings.num_steps} steps"
            )
        return self

    @property
    def kind(self) -> str:
        """Which of KINDS it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def settings(self) -> Settings:
        """The settings of its kind."""
        settings: Settings = getattr(self, self.kind)
        return settings

    @property
    def label(self) -> str:
        """Its name, or its kind."""
        return self.name or self.kind

    @property
    def sources(self) -> tuple[tuple[str, Sources], ...]:
        """Every list of sources it reads, with the key that holds it."""
        settings = self.settings
        if isinstance(settings, GRPO | PPO):
            return ((f"{self.kind}.problems", settings.problems),)
        found = [(f"{self.kind}.data", settings.data)]
        if settings.rejection is not None:
            found.append((f"{self.kind}.rejection.problems", settings.rejection.problems))
        if isinstance(settings, RewardModel):
            found.append(("reward_model.heldout", settings.heldout))
        return tuple(found)

    @property
    def reward_model_name(self) -> tuple[str, str | None]:
        """The key under which it may name a reward model, and the name there."""
        settings = self.settings
        if isinstance(settings, PPO):
            return ("ppo.reward_model", settings.reward_model)
        rejection = None if isinstance(settings, GRPO) else settings.rejection
        return (f"{self.kind}.rejection.reward_model", None if rejection is None else rejection.reward_model)
