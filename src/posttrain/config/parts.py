"""The parts that recipes are built of: data sources, rejection sampling, evaluation, runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from posttrain.errors import RecipeError

Builtin = Literal["writing"]
BUILTIN_SPLITS = ("train", "heldout")


class Part(BaseModel):
    """A frozen table of a recipe: an unknown key, a wrong type or a broken rule is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    refused_keys: ClassVar[Mapping[str, str]] = {}
    """Keys that other libraries have here and this one refuses, with the reason."""


def broken_rule(field: str, sentence: str) -> PydanticCustomError:
    """The error of a rule over several fields; `field` is the key whose line the user is shown."""
    return PydanticCustomError("broken_rule", "{sentence}", {"sentence": sentence, "field": field})


def _amount(value: Any) -> Any:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise PydanticCustomError(
            "rule", "it must be a count of rows such as 500, or a fraction with a point such as 0.5"
        )
    return value


def _folder_name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise PydanticCustomError(
            "rule",
            "it names a folder, so use letters, digits, '.', '_' and '-' and begin with a letter or digit",
        )
    return value


Amount = Annotated[int | float, BeforeValidator(_amount)]
FolderName = Annotated[str, BeforeValidator(_folder_name)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Schedule = Literal["linear", "cosine", "constant"]


class Source(Part):
    """Rows to read: a file or folder, a dataset on the hub, or a set that comes with the package."""

    path: Text | None = Field(
        default=None,
        description="A .jsonl, .jsonl.gz, .json or .parquet file, or a folder of them; relative to here.",
    )
    hub: Text | None = Field(
        default=None, description="A dataset id on the Hugging Face hub, such as `owner/name`."
    )
    builtin: Builtin | None = Field(
        default=None, description="A set of problems that comes with the package."
    )
    split: Text = Field(
        default="train",
        description="Which split to read of a folder or hub dataset; a built-in set has `train` and "
        "`heldout`, which share no problem.",
    )
    amount: Amount = Field(
        default=1.0,
        description="Rows to take, by type: a whole number counts rows, a number with a point is a fraction "
        "of the source (1.0 is all of it); more than there are repeats rows.",
    )
    revision: Text | None = Field(
        default=None, description="Commit, tag or branch of the hub dataset; null is its newest commit."
    )
    name: Text | None = Field(
        default=None, description="What reports call this source; null takes the path or id."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        places = [key for key in ("path", "hub", "builtin") if getattr(self, key) is not None]
        if len(places) != 1:
            found = f"has {' and '.join(places)}" if places else "has none"
            raise broken_rule(
                places[-1] if places else "",
                f"a source needs one of path, hub or builtin, and this one {found}",
            )
        if self.builtin is not None and self.split not in BUILTIN_SPLITS:
            raise broken_rule(
                "split", f"split is {self.split!r}; builtin {self.builtin} has {' and '.join(BUILTIN_SPLITS)}"
            )
        if self.revision is not None and self.hub is None:
            raise broken_rule(
                "revision", "revision pins a hub dataset, and this source is not one; remove it"
            )
        return self

    @property
    def place(self) -> str:
        """Where the rows are: the path, hub id or built-in name, prefixed with its kind."""
        if self.builtin is not None:
            return f"builtin:{self.builtin}"
        return f"hub:{self.hub}" if self.hub is not None else f"{self.path}"

    @property
    def label(self) -> str:
        """What reports call the source."""
        return self.name or (f"{self.place}/{self.split}" if self.builtin else self.place)


Sources = Annotated[tuple[Source, ...], Field(strict=False)]


def parse_source(text: str) -> Source:
    """The source a command-line word names: `builtin:NAME/SPLIT`, `hub:OWNER/NAME[@REVISION]` or a path.

    Raises RecipeError when a built-in set or split does not exist.
    """
    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("builtin", "hub"):
        return Source(path=text)
    if kind == "hub":
        name, _, revision = rest.partition("@")
        if not name:
            raise RecipeError(f"{text!r} names no dataset; write hub:OWNER/NAME")
        return Source(hub=name, revision=revision or None)
    name, _, split = rest.partition("/")
    if name not in get_args(Builtin) or (split or "heldout") not in BUILTIN_SPLITS:
        known = " and ".join(f"builtin:{n}/{s}" for n in get_args(Builtin) for s in BUILTIN_SPLITS)
        raise RecipeError(f"there are no built-in problems {text!r}; there are {known}")
    return Source.model_validate({"builtin": name, "split": split or "heldout"})


class Rejection(Part):
    """Training data that the stage's own starting model writes and a verifier sorts."""

    problems: Sources = Field(description="Problems to sample for, each with a verifier.", min_length=1)
    samples_per_problem: Count = Field(default=8, description="Completions sampled for each problem.")
    temperature: Positive = Field(default=1.0, description="Sampling temperature (a divisor of the logits).")
    max_new_tokens: Count = Field(default=256, description="Most tokens sampled for one completion.")
    max_prompt_tokens: Count = Field(
        default=2048, description="Problems whose rendered prompt has more tokens are dropped and counted."
    )
    keep_per_problem: Count = Field(
        default=1,
        description="Most rows kept for one problem: correct completions for sft, correct/wrong pairs for "
        "dpo.",
    )
    reward_model: Text | None = Field(
        default=None,
        description="Prefers completions by this reward model's score: an earlier stage, a folder or a hub "
        "id; null picks by the seed.",
    )

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.keep_per_problem > self.samples_per_problem:
            raise broken_rule(
                "keep_per_problem",
                f"keep_per_problem is {self.keep_per_problem}, more than the {self.samples_per_problem} "
                "samples_per_problem there are to keep",
            )
        return self


class Evaluation(Part):
    """What is measured before the first stage and after each one, always in the same way."""

    problems: Source = Field(description="Problems to answer; none of them should be trained on.")
    num_problems: Count | None = Field(
        default=None, description="Problems used, from the first on; null is all of them."
    )
    samples_per_problem: Count = Field(default=1, description="Completions sampled for each problem.")
    temperature: NotNegative = Field(
        default=1.0, description="Sampling temperature (a divisor of the logits); 0 is greedy."
    )
    max_new_tokens: Count = Field(default=256, description="Most tokens sampled for one completion.")
    seed: Seed = Field(
        default=0, description="Seed of the samples, the same after every stage so that scores compare."
    )

    @property
    def used(self) -> slice:
        """Which of the source's problems are answered."""
        return slice(0, self.num_problems)

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.temperature == 0 and self.samples_per_problem > 1:
            raise broken_rule(
                "samples_per_problem",
                f"samples_per_problem is {self.samples_per_problem}, but at temperature 0 all samples are "
                "the same; "
                "use 1",
            )
        return self


class Runtime(Part):
    """Where and in what portions the work is done; changes speed and memory, not what is learned."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model lives; auto takes a GPU if there is one."
    )
    compute_dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Number format of the forward and backward pass; master weights are always float32. auto "
        "takes "
        "bfloat16 where the hardware has it.",
    )
    threads: Count | None = Field(
        default=None, description="CPU threads for the arithmetic; null leaves torch's choice."
    )
    max_tokens_per_micro_batch: Count = Field(
        default=2048,
        description="Tokens in one forward and backward pass; a longer row makes one alone. Bounds memory "
        "only: "
        "losses are divided by the whole step's count.",
    )
    sampler_cache_gib: Positive = Field(
        default=2.0, description="Memory of the generator's key-value cache, in GiB."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more time.",
    )
    rehearse: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Run a stage's largest possible micro-batch before its first step, so that too little "
        "memory shows in the first minute; auto does it on a GPU.",
    )
