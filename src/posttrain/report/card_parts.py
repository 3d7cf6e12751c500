"""What a model card says, gathered from a run: scores, stages, sources with licences, limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import CheckpointError
from posttrain.model.builtin import BUILTIN, BuiltinModel
from posttrain.report.kept import kept_of
from posttrain.report.outcome import Outcome
from posttrain.report.record import RunRecord, StageRecord
from posttrain.report.wording import SPACE, bracket, count, percent, plain, points, spell_seconds

_SETTINGS = (
    *(
        "epochs",
        "steps",
        "total_episodes",
        "batch_rows",
        "batch_pairs",
        "prompts_per_step",
        "samples_per_prompt",
    ),
    *("learning_rate", "schedule", "loss", "beta", "gamma", "lam", "kl_coefficient", "kl_estimator"),
    *("clip_low", "clip_high", "advantage", "reward_scale", "temperature", "max_tokens", "max_new_tokens"),
)
"""The settings worth a line in the table; the recipe below it has them all."""
_NAMES = {"base": "Base model", "sft": "SFT", "dpo": "DPO", "grpo": "GRPO", "ppo": "PPO"}
UNSTATED = "not stated; look it up before you publish"


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One stage's held-out score in words; `mean` and `stderr` are fractions."""

    label: str
    mean: float
    stderr: float
    interval: str
    gain: str

    @property
    def score(self) -> str:
        """`31.6 ± 3.4 %`."""
        error = "" if math.isnan(self.stderr) else f" ± {100 * self.stderr:.1f}"
        return f"{100 * self.mean:.1f}{error}{SPACE}%"


@dataclass(frozen=True, slots=True)
class StageRow:
    """One trained stage in words."""

    label: str
    sources: str
    rows: str
    steps: str
    time: str
    settings: str


def parse_recipe(run: RunRecord) -> dict[str, Any]:
    """The run's recipe as plain values; CheckpointError when it is not YAML. Empty when there is none."""
    try:
        content = yaml.safe_load(run.recipe)
    except yaml.YAMLError as error:
        raise CheckpointError(
            f"the recipe.yaml of {run.name} is damaged; copy the one it was run with"
        ) from error
    return content if isinstance(content, dict) else {}


def score_rows(outcome: Outcome, summary: Mapping[str, Any], kinds: Mapping[str, str]) -> list[ScoreRow]:
    """From the samples where they are there, else from `summary.json`, which has no interval per stage."""
    rows = [
        ScoreRow(
            label=score.label,
            mean=score.estimate.mean,
            stderr=score.estimate.stderr,
            interval=bracket(score.estimate.low, score.estimate.high),
            gain=""
            if score.gain is None
            else f"{points(score.gain.difference)} {bracket(score.gain.low, score.gain.high)}",
        )
        for score in outcome.scores
        if score.estimate is not None
    ]
    if rows:
        return rows
    return [
        ScoreRow(
            label=_label(stage["name"], kinds),
            mean=float(stage["mean_score"]),
            stderr=math.nan if stage.get("stderr") is None else float(stage["stderr"]),
            interval="",
            gain="",
        )
        for stage in summary.get("stages") or []
        if stage.get("mean_score") is not None
    ]


def overall(outcome: Outcome, summary: Mapping[str, Any], rows: Sequence[ScoreRow]) -> str:
    """The run's gain in one sentence; empty when nothing can be compared."""
    if outcome.gain is not None:
        return outcome.sentence
    gain = summary.get("gain")
    if not gain or not rows:
        return ""
    low, high = gain["ci95"]
    move = f"Held-out score {percent(rows[0].mean)} → {percent(rows[-1].mean)}"
    interval = f"{points(gain['value'])} points, 95 % CI {bracket(low, high)}"
    if low <= 0 <= high:
        return f"{move}: no clear change, {interval}."
    return f"{move}: {'gain' if low > 0 else 'significantly worse,'} {interval}."


def stage_rows(run: RunRecord, recipe: Mapping[str, Any]) -> list[StageRow]:
    """Every stage of the recipe; what has not run yet has no rows, steps and time."""
    records = {stage.name: stage for stage in run.stages}
    kinds = _kinds(run)
    rows = []
    for index, (kind, settings) in enumerate(_stages(recipe), start=1):
        name = next((name for name in kinds if name.startswith(f"{index:02d}-")), f"{index:02d}-{kind}")
        record = records.get(name)
        data = (record.data if record else None) or {}
        rows.append(
            StageRow(
                label=record.label if record else _label(name, kinds),
                sources=_trained_on(settings),
                rows=f"{data['rows']:,}" if isinstance(data.get("rows"), int) else "",
                steps=f"{len(record.metrics):,}" if record and record.metrics else "",
                time=_time(record),
                settings=", ".join(
                    f"{key} {settings[key]}" for key in _SETTINGS if settings.get(key) is not None
                ),
            )
        )
    return rows


def kept_lines(run: RunRecord) -> list[str]:
    """For each stage that was measured while it trained: which step is its result, and the candidates."""
    lines = []
    for stage in run.stages:
        if (kept := kept_of(stage)) is None:
            continue
        scores = ", ".join(f"step {one.step:,} {one.spelt}" for one in kept.candidates)
        lines.append(f"{kept.sentence} Measured: {scores}." if scores else kept.sentence)
    return lines


def dropped_lines(run: RunRecord) -> list[str]:
    """What each stage left out of its data, and why."""
    lines = []
    for stage in run.stages:
        dropped = (stage.data or {}).get("dropped") or {}
        reasons = ", ".join(
            f"{number:,} ({reason.replace('_', ' ')})" for reason, number in dropped.items() if number
        )
        if reasons:
            lines.append(f"{stage.label} left out {reasons}.")
    return lines


def licence_rows(run: RunRecord, recipe: Mapping[str, Any], base_licence: str) -> list[tuple[str, str]]:
    """The base model's licence and that of every data source, as far as they are stated."""
    base = str(recipe.get("model") or (run.manifest.get("model") or {}).get("name") or "the base model")
    stated = {
        _public(str(source.get("name") or "unnamed")): str(source.get("licence") or "")
        for stage in run.stages
        for source in (stage.data or {}).get("sources") or []
    }
    for _, settings in _stages(recipe):
        for source in sources_of(settings):
            names = {_source_name(source), f"{_source_name(source)}/{source.get('split', 'train')}"}
            if not names & stated.keys():
                stated[_source_name(source)] = "Apache-2.0" if source.get("builtin") else ""
    rows = [(f"{_public(base)} (base model)", base_licence or UNSTATED)]
    return rows + [(f"{name} (data)", licence or UNSTATED) for name, licence in stated.items()]


def limit_lines(
    run: RunRecord, recipe: Mapping[str, Any], outcome: Outcome, benchmarks: Sequence[str], scored: bool
) -> list[str]:
    """What these results do not show, as far as the run's own files tell."""
    lines = list(outcome.warnings)
    evaluation = recipe.get("evaluation") or {}
    builtin = (evaluation.get("problems") or {}).get("builtin")
    trained = [source for _, settings in _stages(recipe) for source in sources_of(settings)]
    if scored and builtin and any(source.get("builtin") == builtin for source in trained):
        lines.append(
            f"The held-out problems come from the same generator as the training problems ({builtin}). They share "
            "no problem, but the score shows that the task was learned, not that anything else got better."
        )
    if not benchmarks:
        lines.append(
            "No public benchmark was run: knowledge, reasoning, code and other languages were not measured."
        )
    if not {"safety", "harmbench", "wildguardtest", "xstest"} & set(benchmarks):
        lines.append(
            "No safety benchmark was run. Assume that the base model's safety behaviour may have changed."
        )
    lines.append(
        f"One run with one seed ({run.manifest.get('seed', recipe.get('seed'))}). The intervals cover the choice of "
        "problems and samples, not what another training seed would give."
    )
    lines.append("What is said of the base model's data, biases and limits holds here too.")
    lines += [f"{plain(gap)}." for gap in run.gaps if run.stages]
    for stage in run.stages:
        lines += [f"{stage.label}: {plain(warning)}." for warning in (stage.done or {}).get("warnings") or []]
    return list(dict.fromkeys(lines))


def sources_of(settings: Any) -> Iterator[Mapping[str, Any]]:
    """Every data source in a stage's table, wherever it stands."""
    if isinstance(settings, Mapping):
        if any(settings.get(key) for key in ("path", "hub", "builtin")):
            yield settings
            return
        for value in settings.values():
            yield from sources_of(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from sources_of(value)


def hub_datasets(recipe: Mapping[str, Any]) -> list[str]:
    """Hub ids of everything trained on."""
    found = [source.get("hub") for _, settings in _stages(recipe) for source in sources_of(settings)]
    return list(dict.fromkeys(str(name) for name in found if name))


def builtin_model(run: RunRecord, recipe: Mapping[str, Any]) -> BuiltinModel | None:
    """The built-in model the run started from, if it was one."""
    name = str((run.manifest.get("model") or {}).get("name") or recipe.get("model"))
    return BUILTIN.get(name)


def stage_kinds(run: RunRecord, recipe: Mapping[str, Any]) -> list[str]:
    """The kinds of the finished stages, in order, such as `sft`; all of them where no stage folder is left."""
    if run.stages:
        return [stage.kind for stage in run.stages if stage.done is not None and stage.kind != "base"]
    return [kind for kind, _ in _stages(recipe)]


def label_of(kind: str) -> str:
    """`SFT`, `Reward model`."""
    return _NAMES.get(kind, kind.replace("_", " ").capitalize())


def asked(recipe: Mapping[str, Any], num_problems: int | None) -> str:
    """On what the held-out score was measured, in one paragraph."""
    evaluation = recipe.get("evaluation") or {}
    number = num_problems or evaluation.get("num_problems")
    many = count(number, "held-out problem") if isinstance(number, int) else "the held-out problems"
    source = evaluation.get("problems") or {}
    split = f", split `{source['split']}`" if source.get("split") else ""
    samples = evaluation.get("samples_per_problem", 1)
    return (
        f"Mean score of the verifiers on {many} of `{_source_name(source)}`{split}: "
        f"{count(samples, 'answer')} each, temperature {evaluation.get('temperature', 1.0):g}, at most "
        f"{evaluation.get('max_new_tokens', '?')} new tokens, seed {evaluation.get('seed', 0)}."
    )


def _stages(recipe: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(kind, settings) of each stage; beside the kind's key there may be a name."""
    found = []
    for stage in recipe.get("stages") or []:
        kind = next((key for key, value in stage.items() if isinstance(value, Mapping)), None)
        if kind is not None:
            found.append((kind, stage[kind]))
    return found


def _kinds(run: RunRecord) -> dict[str, str]:
    """Folder name to kind, of every planned stage."""
    planned = {str(stage.get("name")): str(stage.get("kind")) for stage in run.manifest.get("stages") or []}
    return planned or {stage.name: stage.kind for stage in run.stages}


def _label(name: str, kinds: Mapping[str, str]) -> str:
    kind = kinds.get(name, name.partition("-")[2] or name)
    return label_of(kind)


def _trained_on(settings: Mapping[str, Any]) -> str:
    """The stage's sources with their amounts, and whose answers they are."""
    sources = ", ".join(dict.fromkeys(_with_amount(source) for source in sources_of(settings)))
    rejection = settings.get("rejection")
    if not rejection:
        return sources
    many = count(rejection.get("samples_per_problem"), "sample")
    return f"{sources}; {many} each of the model's own, sorted by the verifiers"


def _with_amount(source: Mapping[str, Any]) -> str:
    amount, name = source.get("amount", 1.0), _source_name(source)
    split = "" if source.get("split") in (None, "train") else f" ({source['split']})"
    if isinstance(amount, int):
        return f"{amount:,} of {name}{split}"
    return f"{name}{split}" if amount == 1 else f"{percent(amount)} of {name}{split}"


def _source_name(source: Mapping[str, Any]) -> str:
    builtin = f"builtin:{source['builtin']}" if source.get("builtin") else ""
    return _public(str(source.get("name") or source.get("hub") or builtin or source.get("path") or "unnamed"))


def _public(name: str) -> str:
    """A name fit to be published: of a file on this machine only the last part."""
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def _time(record: StageRecord | None) -> str:
    seconds = (record.done or {}).get("seconds") if record else None
    return spell_seconds(float(seconds)) if seconds else ""
