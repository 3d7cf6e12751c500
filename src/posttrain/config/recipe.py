"""The recipe: everything a run depends on, in one frozen value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from posttrain.config.chain import folder_name, model_names
from posttrain.config.lora import LoRA
from posttrain.config.parts import Evaluation, FolderName, Part, Runtime, Seed, Source, Text, broken_rule
from posttrain.config.stages import Stage


def _default_output(values: dict[str, Any]) -> str:
    return f"runs/{values.get('name', 'unnamed')}"


class Recipe(Part):
    """A run: a model, the stages it goes through in order, and how each is evaluated."""

    name: FolderName = Field(description="Name of the run.")
    description: str = Field(default="", description="One sentence that `posttrain recipes` shows.")
    model: Text = Field(
        description="The model to start from: a folder, a built-in name (`posttrain models list`) or a hub "
        "id."
    )
    model_revision: Text | None = Field(
        default=None, description="Commit, tag or branch of a hub model; null is its newest commit."
    )
    chat_template: Text | None = Field(
        default=None,
        description="How conversations become text: tulu, olmo or a .jinja file; null is the model's own.",
    )
    seed: Seed = Field(default=1, description="Seed of everything random in the run.")
    output: Text = Field(
        default_factory=_default_output, description="Run folder, relative to here; runs/NAME if not given."
    )
    lora: LoRA | None = Field(
        default=None,
        description="Every stage trains adapters of these settings, unless it has its own; null trains all "
        "weights.",
    )
    runtime: Runtime = Field(default=Runtime(), description="Where and in what portions the work is done.")
    evaluation: Evaluation | None = Field(
        default=None,
        description="What is measured before the first stage and after each; null measures nothing.",
    )
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        description="The stages, in order; each starts from the newest policy before it unless it says otherwise.",
        min_length=1,
    )

    @model_validator(mode="after")
    def _every_named_model_can_be(self) -> Self:
        model_names(self.stages)
        return self

    @model_validator(mode="after")
    def _adapters_have_a_model(self) -> Self:
        for index, stage in enumerate(self.stages):
            if (
                stage.ppo is not None
                and stage.ppo.value_start == "scratch"
                and self.lora_of(index) is not None
            ):
                raise broken_rule(
                    "stages",
                    f"stages.{index}.ppo.value_start is scratch, and adapters on random weights learn little; "
                    "start the value model from the policy or a reward model, or train without lora",
                )
        return self

    def lora_of(self, index: int) -> LoRA | None:
        """The adapters that stage `index` trains; None when it trains all weights."""
        own = self.stages[index].lora
        return self.lora if own is None else own

    @property
    def output_path(self) -> Path:
        """The run folder."""
        return Path(self.output)

    def stage_folder(self, index: int) -> str:
        """Name of a stage's folder below `stages/`; `index` counts from 0, and 00-base is the start."""
        return folder_name(self.stages, index)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant, one sentence each."""
        found = []
        if self.evaluation is not None and (shared := self._trained_on(self.evaluation.problems)):
            found.append(f"evaluation.problems is also trained on in {shared}, so its score says little")
        for index, stage in enumerate(self.stages):
            measure = stage.measure
            if measure is None or measure.keep != "best" or measure.evaluation is None:
                continue
            at = f"stages.{index}.measure.evaluation"
            if self.evaluation is not None and measure.evaluation.overlaps(self.evaluation):
                found.append(
                    f"{at} has problems of evaluation, so the score that is reported is of the step it was "
                    "chosen for, and too high; choose by others, or set skip_problems"
                )
            if shared := self._trained_on(measure.evaluation.problems):
                found.append(
                    f"{at}.problems is also trained on in {shared}, so it chooses what was memorised"
                )
        return tuple(found)

    def _trained_on(self, problems: Source) -> str:
        """The keys under which the source of `problems` is trained on."""
        return ", ".join(
            f"stages.{index}.{key}"
            for index, stage in enumerate(self.stages)
            for key, sources in stage.sources
            if not key.endswith("heldout")
            and any((s.place, s.split) == (problems.place, problems.split) for s in sources)
        )
