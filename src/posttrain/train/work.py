"""One stage's work: its data, its learner, its loop, its model on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from posttrain.config.parts import Rejection
from posttrain.config.recipe import Recipe
from posttrain.config.stages import DPO, GRPO, SFT, Stage
from posttrain.data.cache import Tokenised, TokenKey, cached_pairs, cached_rows
from posttrain.data.gather import describe, gather_conversations, gather_preferences, gather_problems
from posttrain.data.mixture import MixtureRecord
from posttrain.data.pairs import pair_rows
from posttrain.data.render import Renderer
from posttrain.data.rows import sft_rows
from posttrain.errors import CheckpointError, DataError
from posttrain.model.export import save_model
from posttrain.model.load import load_model
from posttrain.records import Dropped, Group, Pair, Problem, Row
from posttrain.rollout.collect import Reward, collect
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampler import Sampling
from posttrain.rollout.table import read_rollouts, write_rollouts
from posttrain.runtime.local import FrozenScorer, LocalLearner
from posttrain.train import dpo, sft
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.folder import StageFolder, read_json, write_json, writing
from posttrain.train.grpo import train_grpo
from posttrain.train.metrics import MetricsLog
from posttrain.train.progress import Progress
from posttrain.train.rejection import best_rows, preference_rows
from posttrain.train.seeds import seed_of

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
    renderer: Renderer
    engine: Engine
    device: torch.device
    dtype: torch.dtype
    progress: Progress

    @property
    def seed(self) -> int:
        """Seed of everything random in this stage."""
        return seed_of(self.recipe.seed, self.folder.name)

    @property
    def max_tokens(self) -> int:
        return self.recipe.runtime.max_tokens_per_micro_batch

    def learner(self, *, weight_decay: float, temperature: float = 1.0) -> LocalLearner:
        """The trainable copy of the starting model."""
        module = load_model(self.start, dtype=torch.float32, device=self.device)
        return LocalLearner(
            module,
            compute_dtype=self.dtype,
            temperature=temperature,
            weight_decay=weight_decay,
            gradient_checkpointing=self.recipe.runtime.gradient_checkpointing,
        )

    def reference(self, *, temperature: float = 1.0) -> FrozenScorer:
        """The starting model, frozen: never the half-trained one, also after a resume."""
        module = load_model(self.start, dtype=self.dtype, device=self.device)
        return FrozenScorer(module, compute_dtype=self.dtype, temperature=temperature)

    def save(self, learner: LocalLearner) -> None:
        """Write the stage's model and give its weights to the engine."""
        try:
            with writing(self.folder.model):
                save_model(
                    self.folder.model,
                    config=learner.module.config,
                    weights=learner.weights(),
                    tokenizer=self.renderer.tokenizer,
                    renderer_stop_ids=self.renderer.stop_ids,
                    chat_template=self.renderer.template,
                    # small updates of the next stage must not start from rounded weights
                    dtype=torch.float32,
                    base_model=self.recipe.model,
                    base_revision=self.recipe.model_revision,
                    metadata={"stage": self.folder.name, "recipe": self.recipe.name},
                )
        except SafetensorError as error:  # how safetensors says that the disk is full
            raise CheckpointError(
                f"cannot write {self.folder.model}: {error}; free some space and run again, "
                "what is finished is kept"
            ) from error
        # version 0, as after a restart that reads the model back: versions count within a stage
        self.engine.load(learner.weights(), version=0)


def run_stage(work: Work) -> None:
    """Train the stage from where it stands and leave its model in the stage's folder."""
    settings = work.stage.settings
    checkpoints = Checkpoints(work.folder.checkpoints, every=settings.save_every_steps)
    with MetricsLog(work.folder.metrics) as log:
        if isinstance(settings, SFT):
            learner = _run_sft(work, settings, log, checkpoints)
        elif isinstance(settings, DPO):
            learner = _run_dpo(work, settings, log, checkpoints)
        else:
            learner = _run_grpo(work, settings, log, checkpoints)
        for warning in log.warnings():
            work.progress.warn(warning)
    work.save(learner)
    checkpoints.clear()


def _run_sft(work: Work, cfg: SFT, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
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
            track=track,
        )
    return learner


def _run_dpo(work: Work, cfg: DPO, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
    pairs: list[Pair] = []
    counts = Counts()
    if cfg.data:
        preferences, record = gather_preferences(cfg.data, seed=work.recipe.seed)
        key = TokenKey("pairs", record, work.renderer.fingerprint, cfg.max_tokens, "last")
        build = partial(pair_rows, preferences, work.renderer, max_tokens=cfg.max_tokens)
        tokenised = cached_pairs(key, work.renderer, build)
        counts.take(tokenised, record)
        pairs = tokenised.pairs
    if cfg.rejection is not None:
        own, dropped = preference_rows(
            sample_own(work, cfg.rejection, counts), keep=cfg.rejection.keep_per_problem, seed=work.seed
        )
        counts.add(dropped, ())
        pairs += own
    rows = [row for pair in pairs for row in pair]
    counts.write(work, rows)
    references = None if cfg.loss == "simpo" else _references(work, pairs)
    learner = work.learner(weight_decay=cfg.weight_decay)
    with work.progress.track(work.folder.name, dpo.num_steps(cfg, len(pairs))) as track:
        dpo.train_dpo(
            learner,
            pairs,
            references,
            cfg,
            seed=work.seed,
            max_tokens=work.max_tokens,
            log=log,
            checkpoints=checkpoints,
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
    with work.progress.track(f"{work.folder.name} reference", len(rows), unit="rows") as track:
        found = dpo.reference_sums(work.reference(), pairs, max_tokens=work.max_tokens, track=track)
    write_json(kept, found)
    return found


def _run_grpo(work: Work, cfg: GRPO, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
    counts = Counts()
    problems, record = gather_problems(cfg.problems, seed=work.recipe.seed)
    problems, dropped = short_enough(problems, work.renderer, cfg.max_prompt_tokens)
    counts.add(dropped, describe(record))
    counts.write(work, [Row(p.id, work.renderer.prompt(p.messages), ()) for p in problems])
    learner = work.learner(weight_decay=cfg.weight_decay, temperature=cfg.temperature)
    reference = work.reference(temperature=cfg.temperature) if cfg.kl_coefficient > 0 else None
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


class Counts:
    """What a stage's data came to: sources, rows, tokens, and what was dropped and why."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}
        self.examples: list[str] = []
        self.sources: list[dict[str, Any]] = []
        self.num_escaped = 0

    def add(self, dropped: Dropped, sources: Sequence[dict[str, Any]]) -> None:
        """Count `dropped` and note `sources`."""
        for reason, count in dropped.counts.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.examples += dropped.examples
        self.sources += sources

    def take(self, tokenised: Tokenised, record: MixtureRecord) -> list[Row]:
        """Count what tokenising a mixture dropped and escaped; its rows."""
        self.add(tokenised.dropped, describe(record))
        self.num_escaped += tokenised.num_escaped
        return list(tokenised.rows)

    def write(self, work: Work, rows: Sequence[Row]) -> None:
        """Write `data.json`; DataError when nothing is left to train on."""
        if not rows:
            why = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "no rows"
            raise DataError(f"{work.folder.name} has nothing to train on ({why}); see its data in the recipe")
        if self.num_escaped:
            work.progress.warn(
                f"{self.num_escaped} special-token strings in the data were encoded as plain text"
            )
        write_json(
            work.folder.data,
            {
                "rows": len(rows),
                "tokens": sum(len(row.ids) for row in rows),
                "targets": sum(sum(row.mask) for row in rows),
                "dropped": self.dropped,
                "examples": self.examples[:10],
                "sources": self.sources,
                "notes": [],
            },
        )
