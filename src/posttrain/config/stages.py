"""The settings of each kind of stage. Defaults are those of the Tülu 3 8B and Tülu 3.1 8B runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.parts import (
    Count,
    FolderName,
    Fraction,
    NotNegative,
    Part,
    Positive,
    Rejection,
    Schedule,
    Sources,
    broken_rule,
)

SAVE_DESCRIPTION = "Optimizer steps between checkpoints; null keeps only the stage's end."
WARMUP_DESCRIPTION = "Fraction of the stage's updates in which the learning rate rises from 0 to its peak."
NORM_DESCRIPTION = "The whole step's gradient is scaled down to this L2 norm; null never clips."
DECAY_DESCRIPTION = "AdamW's decoupled weight decay, as a fraction of the weight times the learning rate."
RATE_DESCRIPTION = "AdamW's peak step size."
SCHEDULE_DESCRIPTION = "Shape of the learning rate after the warm-up; linear and cosine fall towards 0."


def check_micro_batch_mean(loss_denominator: str, rows_per_micro_batch: int | None) -> None:
    """A loss that depends on micro-batches means nothing until they have a fixed number of rows."""
    if loss_denominator in ("micro_batch_mean", "sum") and rows_per_micro_batch is None:
        raise broken_rule(
            "loss_denominator",
            f"loss_denominator {loss_denominator} depends on which rows share a micro-batch; set "
            "rows_per_micro_batch as well, or use step_tokens",
        )


class SFT(Part):
    """Supervised fine-tuning: cross-entropy on the assistant's turns."""

    data: Sources = Field(
        default=(), description="Conversations to imitate (`messages`, or `prompt` and `completion`)."
    )
    rejection: Rejection | None = Field(
        default=None, description="Adds the starting model's own correct completions to the data."
    )
    epochs: Count = Field(default=2, description="Passes over the data.")
    batch_rows: Count = Field(default=128, description="Conversations per optimizer step.")
    max_tokens: Count = Field(
        default=4096, description="Longer conversations, in tokens, are dropped and counted."
    )
    learning_rate: Positive = Field(default=5e-6, description=RATE_DESCRIPTION)
    schedule: Schedule = Field(default="linear", description=SCHEDULE_DESCRIPTION)
    warmup_fraction: Fraction = Field(default=0.03, description=WARMUP_DESCRIPTION)
    weight_decay: NotNegative = Field(default=0.0, description=DECAY_DESCRIPTION)
    max_grad_norm: Positive | None = Field(default=1.0, description=NORM_DESCRIPTION)
    loss_denominator: Literal["step_tokens", "micro_batch_mean", "sum"] = Field(
        default="step_tokens",
        description="What the summed token loss is divided by: the step's target tokens; each micro-batch's "
        "own, averaged over micro-batches (weighs short rows more); or the number of micro-batches, as Tülu 3 "
        "did.",
    )
    rows_per_micro_batch: Count | None = Field(
        default=None,
        description="Rows in one micro-batch; null takes what fits runtime.max_tokens_per_micro_batch.",
    )
    save_every_steps: Count | None = Field(default=None, description=SAVE_DESCRIPTION)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if not self.data and self.rejection is None:
            raise broken_rule("data", "there is nothing to train on; give data, rejection or both")
        check_micro_batch_mean(self.loss_denominator, self.rows_per_micro_batch)
        return self


class DPO(Part):
    """Direct preference optimization on pairs that share their prompt (arXiv:2305.18290)."""

    data: Sources = Field(
        default=(),
        description="Preference pairs (`chosen` and `rejected`, as message lists or with a `prompt`).",
    )
    rejection: Rejection | None = Field(
        default=None,
        description="Adds pairs of the starting model's own correct and wrong completions of one problem.",
    )
    epochs: Count = Field(default=1, description="Passes over the data.")
    batch_pairs: Count = Field(
        default=128, description="Pairs per optimizer step; the loss is the mean over them."
    )
    max_tokens: Count = Field(
        default=2048, description="Pairs with a longer side, in tokens, are dropped and counted."
    )
    loss: Literal["dpo", "dpo_norm", "ipo", "simpo"] = Field(
        default="dpo_norm",
        description="Preference loss: dpo sums log-probabilities over a reply; dpo_norm, ipo and simpo "
        "average them "
        "over its tokens; simpo needs no reference model.",
    )
    beta: Positive = Field(
        default=5.0,
        description="Weight of the log-probability margin, per nat (5 suits dpo_norm; 0.1 is usual for dpo).",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="Assumed fraction of pairs whose labels are swapped; not for ipo."
    )
    gamma_beta_ratio: NotNegative = Field(
        default=0.3,
        description="SimPO's target margin divided by beta, in nats per token; only simpo reads it.",
    )
    learning_rate: Positive = Field(default=5e-7, description=RATE_DESCRIPTION)
    schedule: Schedule = Field(default="linear", description=SCHEDULE_DESCRIPTION)
    warmup_fraction: Fraction = Field(default=0.1, description=WARMUP_DESCRIPTION)
    weight_decay: NotNegative = Field(default=0.0, description=DECAY_DESCRIPTION)
    max_grad_norm: Positive | None = Field(default=1.0, description=NORM_DESCRIPTION)
    save_every_steps: Count | None = Field(default=None, description=SAVE_DESCRIPTION)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if not self.data and self.rejection is None:
            raise broken_rule("data", "there is nothing to train on; give data, rejection or both")
        if self.rejection is not None and self.rejection.samples_per_problem < 2:
            raise broken_rule(
                "rejection",
                "a pair needs a correct and a wrong completion, so rejection.samples_per_problem is at least "
                "2",
            )
        if self.label_smoothing > 0 and self.loss == "ipo":
            raise broken_rule("label_smoothing", "ipo has no label smoothing; set label_smoothing to 0")
        return self


class GRPO(Part):
    """Group-relative policy optimization with verifiable rewards (arXiv:2402.03300)."""

    refused_keys: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("top_p", "top_k", "min_p"),
        "training samples come from the whole distribution: a truncated one would make every probability "
        "ratio wrong",
    )

    problems: Sources = Field(description="Problems to sample for, each with a verifier.", min_length=1)
    steps: Count | None = Field(default=None, description="Rollout steps; give this or total_episodes.")
    total_episodes: Count | None = Field(
        default=None,
        description="Completions sampled over the whole stage; a last, incomplete step is left out.",
    )
    prompts_per_step: Count = Field(default=48, description="Prompts per rollout step.")
    samples_per_prompt: Annotated[int, Field(ge=2)] = Field(
        default=16,
        description="Completions sampled for each prompt: one group, whose mean reward is the baseline.",
    )
    mini_batches: Count = Field(
        default=2, description="Optimizer updates that share the completions of one rollout step."
    )
    inner_epochs: Count = Field(default=1, description="Passes over the completions of one rollout step.")
    max_prompt_tokens: Count = Field(
        default=2048, description="Problems whose rendered prompt has more tokens are dropped and counted."
    )
    max_new_tokens: Count = Field(default=2048, description="Most tokens sampled for one completion.")
    temperature: Positive = Field(
        default=1.0,
        description="Sampling temperature (a divisor of the logits), for sampling and for the loss alike.",
    )
    learning_rate: Positive = Field(default=5e-7, description=RATE_DESCRIPTION)
    schedule: Schedule = Field(default="constant", description=SCHEDULE_DESCRIPTION)
    warmup_fraction: Fraction = Field(default=0.0, description=WARMUP_DESCRIPTION)
    weight_decay: NotNegative = Field(default=0.0, description=DECAY_DESCRIPTION)
    max_grad_norm: Positive | None = Field(default=1.0, description=NORM_DESCRIPTION)
    kl_coefficient: NotNegative = Field(
        default=0.01,
        description="Weight of the KL divergence to the stage's starting model, per nat; 0 needs no "
        "reference.",
    )
    kl_estimator: Literal["k1", "k2", "k3", "rk"] = Field(
        default="k3",
        description="With d = log policy - log reference: k1 is d, k2 is d²/2, k3 is exp(-d) - 1 + d, rk is "
        "the "
        "probability ratio times d (nats per token).",
    )
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="Where the KL term goes: a term of the loss, or taken off the completion's reward.",
    )
    clip_low: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="The probability ratio is clipped from below at 1 - clip_low."
    )
    clip_high: Positive = Field(
        default=0.2, description="The probability ratio is clipped from above at 1 + clip_high."
    )
    advantage: Literal["group_std", "group_centred", "leave_one_out"] = Field(
        default="group_std",
        description="A completion's advantage: reward less the group's mean, divided by its standard "
        "deviation; the "
        "same undivided; or reward less the mean of the group's others.",
    )
    std_ddof: Literal[0, 1] = Field(
        default=1, description="What group_std takes off the group's size when it averages squares: 1 or 0."
    )
    reward_scale: Positive = Field(
        default=10.0, description="Reward of a completion whose verifier's value is 1."
    )
    no_stop_score: float | None = Field(
        default=0.0,
        description="Replaces the reward of a completion that was cut at max_new_tokens; null leaves it as "
        "verified.",
    )
    loss_denominator: Literal["step_tokens", "micro_batch_mean", "constant"] = Field(
        default="step_tokens",
        description="What the summed token loss is divided by: the update's completion tokens; each "
        "micro-batch's "
        "own, averaged over micro-batches; or the constant rows x max_new_tokens (arXiv:2503.20783).",
    )
    rows_per_micro_batch: Count | None = Field(
        default=None,
        description="Completions in one micro-batch; null takes what fits "
        "runtime.max_tokens_per_micro_batch.",
    )
    importance_cap: Annotated[float, Field(ge=1)] | None = Field(
        default=None,
        description="Weigh each token by the learner's probability over the sampler's, at most this; null "
        "never weighs.",
    )
    old_logprobs: Literal["sampler", "learner"] = Field(
        default="sampler",
        description="Log-probabilities the ratio is taken against: those the sampler drew with, or the "
        "learner's own, computed again before the step's first update.",
    )
    zero_signal: Literal["keep", "skip", "refill"] = Field(
        default="keep",
        description="What happens to a group whose rewards are all equal: trained on for its KL term only, "
        "left out, "
        "or left out and replaced by a new prompt's.",
    )
    generate_ahead: Literal[0, 1] = Field(
        default=0,
        description="Rollout steps sampled ahead of the training: 1 overlaps the two with one-step-old "
        "weights.",
    )
    max_logprob_difference_nats: Positive | None = Field(
        default=0.5,
        description="Stops the run when sampler and learner differ by more than this in a step's mean "
        "absolute "
        "log-probability, in nats; null never stops.",
    )
    save_every_steps: Count | None = Field(
        default=None, description="Rollout steps between checkpoints; null keeps only the stage's end."
    )

    @property
    def completions_per_step(self) -> int:
        """Completions sampled per rollout step."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def rows_per_update(self) -> int:
        """Completions in one optimizer update."""
        return self.completions_per_step // self.mini_batches

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates per rollout step."""
        return self.mini_batches * self.inner_epochs

    @property
    def num_steps(self) -> int:
        """Rollout steps of the stage."""
        return (
            self.steps if self.steps is not None else (self.total_episodes or 0) // self.completions_per_step
        )

    @property
    def num_updates(self) -> int:
        """Optimizer updates of the stage: the length of the learning-rate schedule."""
        return self.num_steps * self.updates_per_step

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        size = self.completions_per_step
        product = f"{self.prompts_per_step} prompts_per_step x {self.samples_per_prompt} samples_per_prompt"
        if size % self.mini_batches:
            raise broken_rule(
                "mini_batches",
                f"{product} = {size} completions do not divide into {self.mini_batches} mini_batches",
            )
        if (self.steps is None) == (self.total_episodes is None):
            found = "neither is set" if self.steps is None else "both are set"
            raise broken_rule("total_episodes", f"give either steps or total_episodes; {found}")
        if self.total_episodes is not None and self.total_episodes < size:
            raise broken_rule(
                "total_episodes",
                f"total_episodes is {self.total_episodes}, less than one step: {product} = {size}",
            )
        check_micro_batch_mean(self.loss_denominator, self.rows_per_micro_batch)
        if self.importance_cap is not None and self.old_logprobs != "learner":
            raise broken_rule(
                "importance_cap",
                "importance_cap weighs the learner's probabilities against the sampler's, so it needs "
                "old_logprobs learner",
            )
        return self

    @model_validator(mode="after")
    def _kl_has_an_effect(self) -> Self:
        if self.kl_in == "reward" and self.kl_coefficient == 0:
            raise broken_rule(
                "kl_in", "kl_in is reward, but kl_coefficient is 0, so nothing would be taken off it"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1" and self.kl_coefficient > 0:
            raise broken_rule(
                "kl_estimator",
                "the gradient of k1 is zero on average, so as a loss term it holds nothing; "
                "use k3 or k2, or kl_in reward",
            )
        if self.kl_in == "reward" and self.kl_estimator == "rk":
            raise broken_rule(
                "kl_estimator",
                "rk acts through the gradient of its ratio and belongs in the loss; use k1 with kl_in reward",
            )
        return self


class Stage(Part):
    """One stage: exactly one of `sft`, `dpo` and `grpo`, and a name if its kind says too little."""

    name: FolderName | None = Field(
        default=None, description="Name of the stage in folders and reports; null takes its kind."
    )
    sft: SFT | None = Field(default=None, description="Supervised fine-tuning.")
    dpo: DPO | None = Field(default=None, description="Direct preference optimization.")
    grpo: GRPO | None = Field(
        default=None, description="Group-relative policy optimization with verifiable rewards."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [kind for kind in ("sft", "dpo", "grpo") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = f"has {' and '.join(kinds)}; split it in two" if kinds else "has none"
            raise broken_rule(
                kinds[-1] if kinds else "", f"a stage is one of sft, dpo or grpo, and this one {found}"
            )
        return self

    @property
    def kind(self) -> Literal["sft", "dpo", "grpo"]:
        """Which of the three it is."""
        if self.sft is not None:
            return "sft"
        return "dpo" if self.dpo is not None else "grpo"

    @property
    def settings(self) -> SFT | DPO | GRPO:
        """The settings of its kind."""
        settings = self.sft or self.dpo or self.grpo
        assert settings is not None  # _one_kind
        return settings

    @property
    def label(self) -> str:
        """Its name, or its kind."""
        return self.name or self.kind

    @property
    def sources(self) -> tuple[tuple[str, Sources], ...]:
        """Every list of sources it trains on, with the key that holds it."""
        settings = self.settings
        if isinstance(settings, GRPO):
            return (("grpo.problems", settings.problems),)
        own = (f"{self.kind}.data", settings.data)
        if settings.rejection is None:
            return (own,)
        return (own, (f"{self.kind}.rejection.problems", settings.rejection.problems))
