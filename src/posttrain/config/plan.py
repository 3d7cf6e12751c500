"""What a recipe amounts to, as far as its text says: steps, updates, tokens, and the files it needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.chain import model_names
from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.measure import Measure
from posttrain.config.parts import Rejection, Source
from posttrain.config.ppo import PPO
from posttrain.config.recipe import Recipe
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT
from posttrain.config.stages import Stage


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The size of one stage. None where it depends on how many rows the data has."""

    folder: str
    kind: str
    reads: str
    """Its sources and their amounts."""
    batch: str
    """What one step holds."""
    steps: int | None
    """Rollout steps (ppo, grpo) or optimizer steps; an upper bound where rows may be dropped."""
    updates: int | None
    """Optimizer updates; of each model, where two learn."""
    sampled_tokens: int | None
    """Most tokens that are sampled."""
    trained_tokens: int | None
    """Most tokens, prompts included, that pass through the learner with a gradient."""


def plan(recipe: Recipe) -> list[StagePlan]:
    """The plan of each stage, in order."""
    return [_stage(stage, recipe.stage_folder(index)) for index, stage in enumerate(recipe.stages)]


def measured(recipe: Recipe) -> list[tuple[str, str]]:
    """For each stage that is measured while it trains: its folder, and when, on what and for what, in words."""
    return [
        (recipe.stage_folder(index), _measured(stage, stage.measure))
        for index, stage in enumerate(recipe.stages)
        if stage.measure is not None
    ]


def missing_files(recipe: Recipe) -> list[str]:
    """One sentence for each local file that the recipe names and that is not there."""
    named = [
        (f"stages.{i}.{key}.{n}.path", source.path)
        for i, stage in enumerate(recipe.stages)
        for key, sources in stage.sources
        for n, source in enumerate(sources)
    ]
    if recipe.evaluation is not None:
        named.append(("evaluation.problems.path", recipe.evaluation.problems.path))
    for i, stage in enumerate(recipe.stages):
        measure = stage.measure
        if measure is not None and measure.evaluation is not None:
            at = f"stages.{i}.measure.evaluation.problems.path"
            named.append((at, measure.evaluation.problems.path))
        if measure is not None and measure.benchmarks is not None:
            data = measure.benchmarks.data
            folder = None if data is None or data == "hub" else data.removeprefix("hub:")
            named.append((f"stages.{i}.measure.benchmarks.data", folder))
    if recipe.chat_template is not None and recipe.chat_template.endswith(".jinja"):
        named.append(("chat_template", recipe.chat_template))
    models = {"model": recipe.model} | model_names(recipe.stages)
    named += [(key, name) for key, name in models.items() if name.startswith((".", "/", "~"))]
    return [
        f"{key} is {path}, which does not exist"
        for key, path in named
        if path is not None and not Path(path).expanduser().exists()
    ]


def num_rows(sources: Iterable[Source]) -> int | None:
    """Rows in all, or None where a source is taken by fraction."""
    amounts = [source.amount for source in sources]
    return sum(map(int, amounts)) if all(isinstance(amount, int) for amount in amounts) else None


def _stage(stage: Stage, folder: str) -> StagePlan:
    settings = stage.settings
    reads = ", ".join(_reads(source) for _, sources in stage.sources for source in sources)
    if isinstance(settings, GRPO | PPO):
        learners = 2 if isinstance(settings, PPO) else 1
        completions = settings.num_steps * settings.completions_per_step
        longest = settings.max_prompt_tokens + settings.max_new_tokens
        return StagePlan(
            folder,
            stage.kind,
            reads,
            f"{settings.prompts_per_step} prompts x {settings.samples_per_prompt} = "
            f"{settings.completions_per_step} completions, {settings.updates_per_step} updates of "
            f"{settings.rows_per_update}",
            settings.num_steps,
            settings.num_updates,
            completions * settings.max_new_tokens,
            completions * settings.inner_epochs * longest * learners,
        )
    return _supervised(settings, folder, stage.kind, reads)


def _measured(stage: Stage, measure: Measure) -> str:
    size = stage.settings if isinstance(stage.settings, GRPO | PPO) else None
    kept = "the best of them" if measure.keep == "best" else f"{measure.keep}"
    if isinstance(measure.keep, int):
        episode = "" if size is None else f" (episode {measure.keep * size.completions_per_step:,})"
        kept = f"step {measure.keep:,}{episode}"
    on = []
    if (evaluation := measure.evaluation) is not None:
        number = "all" if evaluation.num_problems is None else f"{evaluation.num_problems:,}"
        on.append(f"{number} problems of {evaluation.problems.label}")
    if (benchmarks := measure.benchmarks) is not None:
        limit = "" if benchmarks.limit is None else f" ({benchmarks.limit:,} documents each)"
        on.append(", ".join(benchmarks.tasks) + limit)
    if not on:
        return f"kept: {kept}"
    return f"{_when(measure, None if size is None else size.num_steps)}, on {' and '.join(on)}; kept: {kept}"


def _when(measure: Measure, num_steps: int | None) -> str:
    """`at 30 steps: 434, 868, ... 13,020`, as far as the recipe says."""
    if num_steps is None:
        often = f"every {measure.every_steps:,} steps" if measure.every_steps else f"{measure.times:,} times"
        return f"{often}{' and at the start' * measure.at_start}"
    steps = [f"{step:,}" for step in measure.steps(num_steps)]
    shown = steps if len(steps) <= 5 else [*steps[:2], "...", steps[-1]]
    return f"at {len(steps)} step{'s' * (len(steps) > 1)}: {', '.join(shown)}"


def _supervised(settings: SFT | DPO | RewardModel, folder: str, kind: str, reads: str) -> StagePlan:
    is_sft = isinstance(settings, SFT)
    size = settings.batch_rows if isinstance(settings, SFT) else settings.batch_pairs
    rows, sampled = num_rows(settings.data), 0 if settings.rejection is None else None
    if settings.rejection is not None:
        kept, sampled = _rejection(settings.rejection)
        rows = None if rows is None or kept is None else rows + kept
    steps = None if rows is None else -(-rows // size) * settings.epochs
    sides = 1 if is_sft else 2
    return StagePlan(
        folder,
        kind,
        reads,
        f"{size} {'conversations' if is_sft else 'pairs'}, {settings.epochs} "
        f"epoch{'s' * (settings.epochs > 1)}",
        steps,
        steps,
        sampled,
        None if rows is None else rows * settings.epochs * settings.max_tokens * sides,
    )


def _rejection(rejection: Rejection) -> tuple[int | None, int | None]:
    """Most rows kept, and most tokens sampled."""
    problems = num_rows(rejection.problems)
    if problems is None:
        return None, None
    samples = problems * rejection.samples_per_problem
    return problems * rejection.keep_per_problem, samples * rejection.max_new_tokens


def _reads(source: Source) -> str:
    if isinstance(source.amount, int):
        return f"{source.label} ({source.amount:,} rows)"
    return f"{source.label} (all)" if source.amount == 1.0 else f"{source.label} ({source.amount:g} of it)"
