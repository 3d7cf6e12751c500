"""One stage from where it stands to its model, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.ppo import PPO
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT
from posttrain.model.heads import load_scorer, new_scorer, random_scorer
from posttrain.records import Pair
from posttrain.rollout.reward_model import rejudged
from posttrain.runtime.local import LocalLearner
from posttrain.runtime.value import LocalScoreLearner
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.counts import Counts
from posttrain.train.folder import write_json
from posttrain.train.measurements import clear_kept, take_kept
from posttrain.train.metrics import MetricsLog
from posttrain.train.peak_memory import forget_peak, peak_memory
from posttrain.train.ppo import train_ppo
from posttrain.train.reward_model import answered, measure, num_steps, train_reward_model
from posttrain.train.seeds import seed_of
from posttrain.train.work import (
    Work,
    gather_pairs,
    run_dpo,
    run_grpo,
    run_sft,
    take_problems,
    tokenised_pairs,
)


def run_stage(work: Work) -> None:
    """Train the stage from where it stands and leave its model in the stage's folder."""
    settings = work.stage.settings
    checkpoints = Checkpoints(work.folder.checkpoints, every=settings.save_every_steps)
    forget_peak()
    with MetricsLog(work.folder.metrics, also=peak_memory) as log:
        learner = _RUN[type(settings)](work, settings, log, checkpoints)
        for warning in log.warnings():
            work.progress.warn(warning)
    step = None
    if work.stage.measure is not None:
        assert isinstance(learner, LocalLearner)  # a reward model is not measured
        step = take_kept(work, learner)
    work.save(learner, step=step)
    clear_kept(work.folder)
    checkpoints.clear()


def run_reward_model(
    work: Work, cfg: RewardModel, log: MetricsLog, checkpoints: Checkpoints
) -> LocalScoreLearner:
    """A scalar head on the starting model, trained on pairs; the held-out pairs' scores beside it."""
    counts = Counts()
    pairs = _answered(gather_pairs(work, cfg, counts))
    counts.write(work, [row for pair in pairs for row in pair])
    heldout = _answered(tokenised_pairs(work, cfg.heldout, cfg.max_tokens, Counts())) if cfg.heldout else []
    seed = seed_of(work.seed, "head")
    module = new_scorer(work.start, dtype=work.weight_dtype, device=work.device, seed=seed)
    learner = work.score_learner(module, weight_decay=cfg.weight_decay)
    work.rehearse(checkpoints, learner)
    with work.progress.track(work.folder.name, num_steps(cfg, len(pairs))) as track:
        train_reward_model(
            learner,
            pairs,
            heldout,
            cfg,
            seed=work.seed,
            max_tokens=work.max_tokens,
            log=log,
            checkpoints=checkpoints,
            track=track,
        )
    if heldout:
        metrics, scores = measure(learner, heldout, max_tokens=work.max_tokens)
        names = [chosen.id.removesuffix("/chosen") for chosen, _ in heldout]
        rows = [{"id": n, "chosen": c, "rejected": r} for n, (c, r) in zip(names, scores, strict=True)]
        write_json(work.folder.root / "heldout_pairs.json", {"metrics": metrics, "pairs": rows})
    return learner


def _answered(pairs: list[Pair]) -> list[Pair]:
    return [(answered(chosen), answered(rejected)) for chosen, rejected in pairs]


def run_ppo(work: Work, cfg: PPO, log: MetricsLog, checkpoints: Checkpoints) -> LocalLearner:
    """Proximal policy optimization: a policy and a value model, each with its learner."""
    problems = take_problems(work, cfg)
    policy = work.learner(weight_decay=cfg.weight_decay, temperature=cfg.temperature)
    value = _value_learner(work, cfg)
    reference = work.reference(policy, temperature=cfg.temperature) if cfg.kl_coefficient > 0 else None
    judge = None
    if cfg.reward_model_multiplier:
        judge = partial(rejudged, scorer=work.scorer(), multiplier=cfg.reward_model_multiplier)
    work.rehearse(checkpoints, policy, value)
    with work.progress.track(work.folder.name, cfg.num_steps) as track:
        train_ppo(
            policy,
            value,
            work.engine,
            reference,
            work.renderer,
            problems,
            cfg,
            judge=judge,
            seed=work.seed,
            max_tokens=work.max_tokens,
            rollouts=work.folder.rollouts,
            log=log,
            checkpoints=checkpoints,
            measurements=work.measurements(policy, cfg.num_steps),
            track=track,
        )
    return policy


def _value_learner(work: Work, cfg: PPO) -> LocalScoreLearner:
    """The value model as the recipe starts it."""
    place: dict[str, Any] = {"dtype": work.weight_dtype, "device": work.device}
    seed = seed_of(work.seed, "value")
    if cfg.value_start == "reward_model":
        assert work.reward_model is not None
        module = load_scorer(work.reward_model, **place)
    elif cfg.value_start == "policy":
        module = new_scorer(work.start, seed=seed, **place)
    else:
        module = random_scorer(work.start, seed=seed, **place)
    return work.score_learner(module, weight_decay=cfg.weight_decay)


_RUN: dict[type, Callable[..., LocalLearner | LocalScoreLearner]] = {
    SFT: run_sft,
    DPO: run_dpo,
    RewardModel: run_reward_model,
    PPO: run_ppo,
    GRPO: run_grpo,
}
