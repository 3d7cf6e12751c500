"""What a stage works with: its data, its learners, its model on disk; and the stages of one learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.lora import LoRA
from posttrain.config.parts import Rejection, Sources
from posttrain.config.ppo import PPO
from posttrain.config.recipe import Recipe
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT
from posttrain.config.stages import Stage
from posttrain.data.cache import TokenKey, cached_pairs, cached_rows
from posttrain.data.gather import describe, gather_conversations, gather_preferences, gather_problems
from posttrain.data.mismatched import mismatched_pairs
from posttrain.data.pairs import pair_rows
from posttrain.data.render import Renderer
from posttrain.data.rows import sft_rows
from posttrain.errors import CheckpointError, DataError
from posttrain.model.adapter_folder import save_adapter
from posttrain.model.export import save_model
from posttrain.model.heads import load_scorer, padded
from posttrain.model.load import load_model
from posttrain.model.lora import MergedWeights, adapt
from posttrain.model.shards import Shards
from posttrain.records import Dropped, Group, Pair, Problem, Row
from posttrain.rollout.collect import Reward, collect
from posttrain.rollout.engine import Engine
from posttrain.rollout.reward_model import RewardScorer, rejudged
from posttrain.rollout.sampler import Sampling
from posttrain.rollout.table import read_rollouts, write_rollouts
from posttrain.runtime.adapters_off import AdaptersOff
from posttrain.runtime.learner import Scorer
from posttrain.runtime.local import FrozenScorer, LocalLearner
from posttrain.runtime.value import LocalScoreLearner
from posttrain.train import dpo, sft
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.counts import Counts
from posttrain.train.folder import StageFolder, read_json, write_json, writing
from posttrain.train.grpo import train_grpo
from posttrain.train.measurements import Measurements
from posttrain.train.metrics import MetricsLog
from posttrain.train.moving_reference import MovingReference
from posttrain.train.progress import Progress
from posttrain.train.rejection import best_rows, preference_rows
from posttrain.train.seeds import seed_of
from posttrain.train.worst_case import is_due, rehearse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROLLOUT_BATCH = 64
"""Problems sampled between two looks at the progress."""


@dataclass(frozen=True, slots=True)
class Work:
    """Everything a stage needs, whatever its kind."""

    recipe: Recipe
    stage: Stage
    folder: StageFolder
    start: Path
    """The folder of the model it starts from."""
    reference_start: Path
    """The folder of the policy that a KL divergence is measured to; `start` unless the stage names another."""
    reward_model: Path | None
    """The folder of the reward model it uses, if any."""
    renderer: Renderer
    engine: Engine
    device: torch.device
    dtype: torch.dtype
    progress: Progress
    lora: LoRA | None = None
    """The adapters that it trains; None when it trains all weights."""

    @property
    def seed(self) -> int:
        """Seed of everything random in this stage."""
        return seed_of(self.recipe.seed, self.folder.name)

    @property
    def max_tokens(self) -> int:
        return self.recipe.runtime.max_tokens_per_micro_batch

    @property
    def weight_dtype(self) -> torch.dtype:
        """What a learner's matrices are loaded in: float32 masters, or frozen ones that only compute."""
        return torch.float32 if self.lora is None else self.dtype

    def trainable(self, module: PreTrainedModel) -> PreTrainedModel:
        """`module` as this stage trains it: with adapters if it has any. The engine's weights make room for it."""
        self.engine.unload()
        return module if self.lora is None else adapt(module, self.lora, seed=seed_of(self.seed, "lora"))

    def learner(self, *, weight_decay: float, temperature: float = 1.0) -> LocalLearner:
        """The trainable copy of the starting model."""
        module = load_model(self.start, dtype=self.weight_dtype, device=self.device)
        return LocalLearner(
            self.trainable(module),
            compute_dtype=self.dtype,
            temperature=temperature,
            weight_decay=weight_decay,
            gradient_checkpointing=self.recipe.runtime.gradient_checkpointing,
        )

    def reference(self, learner: LocalLearner | None = None, *, temperature: float = 1.0) -> Scorer:
        """The reference policy, frozen: never the half-trained one, also after a resume.

        Where it is what `learner` put its adapters on, it is `learner` without them, and no second copy.
        """
        if learner is not None and self.lora is not None and self.reference_start == self.start:
            return AdaptersOff(learner)
        module = load_model(self.reference_start, dtype=self.dtype, device=self.device)
        return FrozenScorer(module, compute_dtype=self.dtype, temperature=temperature)

    def moving_reference(self, cfg: GRPO) -> MovingReference:
        """The reference policy in float32, to be moved as the recipe says."""
        assert cfg.reference_refresh_steps is not None
        module = load_model(self.reference_start, dtype=torch.float32, device=self.device)
        scorer = FrozenScorer(module, compute_dtype=self.dtype, temperature=cfg.temperature)
        return MovingReference(module, scorer, every=cfg.reference_refresh_steps, mix=cfg.reference_mix)

    def scorer(self) -> RewardScorer:
        """The reward model, frozen."""
        assert self.reward_model is not None
        module = load_scorer(self.reward_model, dtype=self.dtype, device=self.device)
        return RewardScorer(module, compute_dtype=self.dtype, max_tokens=self.max_tokens)

    def score_learner(self, module: PreTrainedModel, *, weight_decay: float) -> LocalScoreLearner:
        """The trainable copy of a model with a scalar head."""
        return LocalScoreLearner(
            self.trainable(module),
            compute_dtype=self.dtype,
            weight_decay=weight_decay,
            gradient_checkpointing=self.recipe.runtime.gradient_checkpointing,
        )

    def rehearse(self, checkpoints: Checkpoints, *learners: LocalLearner | LocalScoreLearner) -> None:
        """Run the stage's largest micro-batch through `learners`, if the recipe wants that here."""
        if is_due(self.recipe.runtime.rehearse, self.device):
            rehearse(learners, self.stage.settings, max_tokens=self.max_tokens, checkpoints=checkpoints)

    def measurements(self, learner: LocalLearner, num_steps: int) -> Measurements | None:
        """What is measured during the stage's `num_steps`; its start at once, if that is wanted."""
        if self.stage.measure is None:
            return None
        found = Measurements(self, self.stage.measure, num_steps)
        found.take_if_due(0, learner)
        return found

    def save(self, learner: LocalLearner | LocalScoreLearner, *, step: int | None = None) -> None:
        """Write the stage's model and, if it is a policy, give its weights to the engine.

        `step` is noted with the model, if it is one that was chosen.
        """
        which = {} if step is None else {"step": step}
        scores = isinstance(learner, LocalScoreLearner)
        tokenizer, stop_ids = self.renderer.tokenizer, self.renderer.stop_ids
        weights = learner.weights()
        try:
            with writing(self.folder.model):
                if self.lora is not None:
                    # on the start's own weights, which the learner may have held rounded
                    weights = MergedWeights(learner.module, base=Shards.if_any(self.start))
                    save_adapter(self.folder.adapter, learner.module, self.lora, start=self.start)
                save_model(
                    self.folder.model,
                    config=learner.module.config,
                    weights=weights,
                    tokenizer=padded(tokenizer, stop_ids) if scores else tokenizer,
                    renderer_stop_ids=stop_ids,
                    chat_template=self.renderer.template,
                    # small updates of the next stage must not start from rounded weights
                    dtype=torch.float32,
                    base_model=self.recipe.model,
                    base_revision=self.recipe.model_revision,
                    metadata={"stage": self.folder.name, "recipe": self.recipe.name, **which},
                    scores=scores,
                )
        except SafetensorError as error:  # how safetensors says that the disk is full
            raise CheckpointError(
                f"cannot write {self.folder.model}: {error}; free some space and run again, "
                "what is finished is kept"
            ) from error
        if not scores:
            # version 0, as after a restart that reads the model back: versions count within a stage
            self.engine.load(weights, version=0)


def run_sft(work: Work, cfg: SFT, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
    """Supervised fine-tuning."""
    rows: list[Row] = []
    counts = Counts()
    if cfg.data:
        conversations, record = gather_conversations(cfg.data, seed=work.recipe.seed)
        key = TokenKey("rows", record, work.renderer.fingerprint, cfg.max_tokens, "all")
        build = partial(sft_rows, conversations, work.renderer, max_tokens=cfg.max_tokens)
        rows = counts.take(cached_rows(key, work.renderer, build), record)
    if cfg.rejection is not None:
        own, dropped = best_rows(
            sample_own(work, cfg.rejection, counts), keep=cfg.rejection.keep_per_problem, seed=work.seed
        )
        counts.add(dropped, ())
        rows += own
    counts.write(work, rows)
    learner = work.learner(weight_decay=cfg.weight_decay)
    work.rehearse(checkpoints, learner)
    total = sft.num_steps(cfg, len(rows))
    with work.progress.track(work.folder.name, total) as track:
        sft.train_sft(
            learner,
            rows,
            cfg,
            seed=work.seed,
            max_tokens=work.max_tokens,
            log=log,
            checkpoints=checkpoints,
            measurements=work.measurements(learner, total),
            track=track,
        )
    return learner


def gather_pairs(work: Work, cfg: DPO | RewardModel, counts: Counts) -> list[Pair]:
    """The stage's pairs: from its data, and of the starting model's own completions."""
    pairs = tokenised_pairs(work, cfg.data, cfg.max_tokens, counts) if cfg.data else []
    if cfg.rejection is not None:
        own, dropped = preference_rows(
            sample_own(work, cfg.rejection, counts), keep=cfg.rejection.keep_per_problem, seed=work.seed
        )
        counts.add(dropped, ())
        pairs += own
    return pairs


def tokenised_pairs(work: Work, sources: Sources, max_tokens: int, counts: Counts) -> list[Pair]:
    """The preference pairs of `sources`, from the cache if they are there."""
    preferences, record = gather_preferences(sources, seed=work.recipe.seed)
    key = TokenKey("pairs", record, work.renderer.fingerprint, max_tokens, "last")
    build = partial(pair_rows, preferences, work.renderer, max_tokens=max_tokens)
    tokenised = cached_pairs(key, work.renderer, build)
    counts.take(tokenised, record)
    return tokenised.pairs


def run_dpo(work: Work, cfg: DPO, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
    """Direct preference optimization."""
    counts = Counts()
    pairs = gather_pairs(work, cfg, counts)
    rows = [row for pair in pairs for row in pair]
    counts.write(work, rows)
    mismatched = mismatched_pairs(pairs, max_tokens=cfg.max_tokens) if cfg.loss == "kto" else []
    references = _references(work, [*pairs, *mismatched]) if cfg.needs_reference else None
    learner = work.learner(weight_decay=cfg.weight_decay)
    work.rehearse(checkpoints, learner)
    total = dpo.num_steps(cfg, len(pairs))
    with work.progress.track(work.folder.name, total) as track:
        dpo.train_dpo(
            learner,
            pairs,
            references,
            cfg,
            mismatched=mismatched,
            seed=work.seed,
            max_tokens=work.max_tokens,
            log=log,
            checkpoints=checkpoints,
            measurements=work.measurements(learner, total),
            track=track,
        )
    return learner


def _references(work: Work, pairs: Sequence[Pair]) -> dict[str, float]:
    """The starting model's sums by row id, computed once and kept beside the stage's metrics."""
    kept = work.folder.root / "reference.json"
    rows = [row.id for pair in pairs for row in pair]
    if kept.is_file():
        found: dict[str, float] = read_json(kept)
        if found.keys() == set(rows):
            return found
    work.engine.unload()  # not needed until there is a newer policy
    with work.progress.track(f"{work.folder.name} reference", len(rows), unit="rows") as track:
        found = dpo.reference_sums(work.reference(), pairs, max_tokens=work.max_tokens, track=track)
    write_json(kept, found)
    return found


def take_problems(work: Work, cfg: GRPO | PPO) -> list[Problem]:
    """The stage's problems, counted in its `data.json`."""
    counts = Counts()
    problems, record = gather_problems(cfg.problems, seed=work.recipe.seed)
    problems, dropped = short_enough(problems, work.renderer, cfg.max_prompt_tokens)
    counts.add(dropped, describe(record))
    counts.write(work, [Row(p.id, work.renderer.prompt(p.messages), ()) for p in problems])
    return problems


def run_grpo(work: Work, cfg: GRPO, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
    """Group-relative policy optimization."""
    problems = take_problems(work, cfg)
    learner = work.learner(weight_decay=cfg.weight_decay, temperature=cfg.temperature)
    reference: Scorer | None = None
    if cfg.reference_refresh_steps is not None:
        reference = work.moving_reference(cfg)
    elif cfg.kl_coefficient > 0:
        reference = work.reference(learner, temperature=cfg.temperature)
    work.rehearse(checkpoints, learner)
    with work.progress.track(work.folder.name, cfg.num_steps) as track:
        train_grpo(
            learner,
            work.engine,
            reference,
            work.renderer,
            problems,
            cfg,
            seed=work.seed,
            max_tokens=work.max_tokens,
            rollouts=work.folder.rollouts,
            log=log,
            checkpoints=checkpoints,
            measurements=work.measurements(learner, cfg.num_steps),
            track=track,
        )
    return learner


def short_enough(
    problems: Sequence[Problem], renderer: Renderer, max_prompt_tokens: int
) -> tuple[list[Problem], Dropped]:
    """The problems whose rendered prompt has at most `max_prompt_tokens` tokens; the others are counted."""
    kept = [p for p in problems if len(renderer.prompt(p.messages)) <= max_prompt_tokens]
    if not kept:
        raise DataError(f"no problem's prompt has at most max_prompt_tokens = {max_prompt_tokens} tokens")
    left_out = len(problems) - len(kept)
    return kept, Dropped({"prompt_too_long": left_out} if left_out else {})


def sample_own(work: Work, cfg: Rejection, counts: Counts) -> list[Group]:
    """The starting model's completions of `cfg.problems`; an interrupted run reads back those it has."""
    problems, record = gather_problems(cfg.problems, seed=work.recipe.seed)
    problems, dropped = short_enough(problems, work.renderer, cfg.max_prompt_tokens)
    counts.add(dropped, describe(record))
    groups: list[Group] = []
    label = f"{work.folder.name} sampling"
    with work.progress.track(label, len(problems), unit="problems") as track:
        for start in range(0, len(problems), _ROLLOUT_BATCH):
            path = work.folder.rollouts / f"rejection_{start:06d}.parquet"
            if path.is_file():
                part = read_rollouts(path)
            else:
                part = _sample_part(work, cfg, problems, start)
                write_rollouts(path, part, step=0)
            groups += part
            tokens = sum(len(r.completion.ids) for group in part for r in group.rollouts)
            track.advance(len(part), tokens=tokens)
    if cfg.reward_model is not None:
        groups = rejudged(groups, Reward(), scorer=work.scorer(), multiplier=0.0)
    return groups


def _sample_part(work: Work, cfg: Rejection, problems: Sequence[Problem], start: int) -> list[Group]:
    return collect(
        work.engine,
        work.renderer,
        problems[start : start + _ROLLOUT_BATCH],
        samples_per_problem=cfg.samples_per_problem,
        sampling=Sampling(temperature=cfg.temperature, max_new_tokens=cfg.max_new_tokens),
        reward=Reward(),
        seed=lambda place, sample: seed_of(work.seed, "rejection", start + place, sample),
    )
