"""What is measured while a stage trains, and which of its steps becomes its result."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from posttrain.config.parts import Count, Evaluation, Part, Seed, Text, broken_rule
from posttrain.errors import RecipeError
from posttrain.evaluation.registry import find_name, find_preset


def _task(value: Any) -> Any:
    return _known(find_name, value)


def _preset(value: Any) -> Any:
    return _known(find_preset, value)


def _known(find: Any, value: Any) -> Any:
    """`value` if `find` knows that name; what is no text is left to pydantic."""
    if isinstance(value, str):
        try:
            find(value)
        except RecipeError as error:
            raise PydanticCustomError("rule", "{sentence}", {"sentence": str(error)}) from None
    return value


def _keep(value: Any) -> Any:
    if value not in ("best", "last") and (type(value) is not int or value < 1):
        raise PydanticCustomError("rule", "it must be best, last or the number of a step, from 1")
    return value


Keep = Annotated[Literal["best", "last"] | int, BeforeValidator(_keep)]


class Selection(Evaluation):
    """Problems that are answered at every measurement; their mean verifier value is the step's score."""

    skip_problems: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Problems left out before the first one used: as many as `evaluation` uses of the same "
        "source, and the two share none.",
    )

    @property
    def used(self) -> slice:
        """Which of the source's problems are answered."""
        end = None if self.num_problems is None else self.skip_problems + self.num_problems
        return slice(self.skip_problems, end)

    def overlaps(self, other: Evaluation) -> bool:
        """Whether it may share problems with `other`, as far as the recipe's text says."""
        if (self.problems.place, self.problems.split) != (other.problems.place, other.problems.split):
            return False
        one_list = self.seed == other.seed and self.problems.amount == other.problems.amount
        return not one_list or other.used.stop is None or self.skip_problems < other.used.stop


class Benchmarks(Part):
    """Benchmarks of `posttrain eval` that are run at every measurement, by the engine that samples."""

    tasks: Annotated[
        tuple[Annotated[str, BeforeValidator(_task)], ...], Field(strict=False, min_length=1)
    ] = Field(description="Their names, such as gsm8k; none that needs a judge or log-probabilities.")
    limit: Count | None = Field(
        default=None, description="Documents of each, spread evenly over its subtasks; null is all of them."
    )
    preset: Annotated[str, BeforeValidator(_preset)] | None = Field(
        default=None, description="Whose settings, as `posttrain eval --preset`; null is its default."
    )
    data: Text | None = Field(
        default=None,
        description="Where their data comes from, as `posttrain eval --data`: a folder, hub or hub:FOLDER; null "
        "takes the variable POSTTRAIN_DATA, else the hub.",
    )
    seed: Seed = Field(default=0, description="Seed of the samples, the same at every step.")


class Measure(Part):
    """Measurements while a stage trains, and which of its steps becomes its result."""

    every_steps: Count | None = Field(
        default=None,
        description="Steps between measurements; the last step is always measured. Give this or times.",
    )
    times: Count | None = Field(
        default=None, description="Measurements spread evenly over the stage, the last at its last step."
    )
    at_start: bool = Field(
        default=False,
        description="Measure before the first step too: where the curves begin. The start is never kept.",
    )
    evaluation: Selection | None = Field(
        default=None, description="Problems to answer; none of them should be trained on or reported."
    )
    benchmarks: Benchmarks | None = Field(
        default=None, description="Benchmarks to run; they are drawn, and nothing is chosen by them."
    )
    keep: Keep = Field(
        default="last",
        description="Which step's weights are the stage's result: best, the measured one with the highest "
        "score, the earliest of equals; last; or the one with this number, measured or not.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        measures = self.evaluation is not None or self.benchmarks is not None
        if self.keep == "best" and self.evaluation is None:
            raise broken_rule("keep", "keep is best, which needs an evaluation to be the best of")
        if not measures and isinstance(self.keep, str):
            raise broken_rule("", "there is nothing to measure; give evaluation, benchmarks or both")
        given = [key for key in ("every_steps", "times") if getattr(self, key) is not None]
        if measures and len(given) != 1:
            found = "both are set" if given else "neither is set"
            raise broken_rule(given[-1] if given else "", f"give either every_steps or times; {found}")
        if not measures and (given or self.at_start):
            key = given[0] if given else "at_start"
            raise broken_rule(key, f"{key} says when to measure, but there is no evaluation and no benchmark")
        return self

    def steps(self, num_steps: int) -> tuple[int, ...]:
        """Steps of a stage of `num_steps` after which it is measured, ascending; 0 is its start."""
        start = (0,) if self.at_start else ()
        if self.every_steps is not None:
            return (*start, *range(self.every_steps, num_steps, self.every_steps), num_steps)
        if self.times is not None:
            evenly = (number * num_steps // self.times for number in range(1, self.times + 1))
            return (*start, *(step for step in dict.fromkeys(evenly) if step))
        return start
