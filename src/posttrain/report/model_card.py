"""The model card: a README whose front matter the hub understands, made from a run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

import posttrain
from posttrain.errors import CheckpointError
from posttrain.evaluation.average import rounded
from posttrain.evaluation.export_model_index import eval_results
from posttrain.evaluation.results import read_results
from posttrain.report import card_parts as parts
from posttrain.report.card_front_matter import checked, front_matter, held_out_result, hub_id
from posttrain.report.outcome import Outcome, measure
from posttrain.report.record import RunRecord, StageRecord, read_run
from posttrain.report.tables import Example, pick_examples
from posttrain.report.wording import bracket, percent, plain
from posttrain.train.folder import RunFolder, read_json, write_text

MARKER = "Written by `posttrain card`. Take this line out and no later call will replace the file."
_QUESTION = "Write two sentences about the sea."


def write_card(
    run: Path,
    out: Path | None = None,
    *,
    results: Sequence[Path] = (),
    name: str | None = None,
    licence: str | None = None,
) -> Path:
    """Write the card of the run folder `run`; returns its path.

    Without `out` it is README.md in the run's model folder, or in the run folder while there is no model.
    `results` are results folders of the final model. A picture of the held-out scores goes beside the card
    where there are samples. CheckpointError when `run` is no run folder; RecipeError when `out` is a file
    that this did not write, or when the front matter would not be valid on the hub.
    """
    folder = RunFolder(run)
    record = read_run(run)
    target = out or (folder.model if folder.model.is_dir() else run) / "README.md"
    _refuse_foreign(target)
    outcome = measure(record)
    picture = ""
    if outcome.first is not None:
        from posttrain.report.gain_figure import write_gain_figure

        picture = write_gain_figure(run, target.with_name(f"{target.stem}-scores.png")).name
    summary = read_json(folder.summary) if folder.summary.is_file() else {}
    found = [read_results(path) for path in results]
    text = render_card(record, outcome, summary, found, name=name, licence=licence, picture=picture)
    write_text(target, text)
    return target


def render_card(
    record: RunRecord,
    outcome: Outcome,
    summary: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]] = (),
    *,
    name: str | None = None,
    licence: str | None = None,
    picture: str = "",
) -> str:
    """The card as text, front matter first; RecipeError when that would not be valid on the hub."""
    recipe = parts.parse_recipe(record)
    title = name or record.name
    scores = parts.score_rows(
        outcome, summary, {s["name"]: s["kind"] for s in record.manifest.get("stages") or []}
    )
    entries = [
        *held_out_result(recipe, outcome, scores),
        *(e for found in results for e in eval_results(found)),
    ]
    data = front_matter(record, recipe, title, licence, entries)
    context = _context(record, recipe, outcome, summary, scores, results)
    context |= {
        "name": title,
        "picture": picture,
        "licence_note": _licence_note(getattr(data, "license", None)),
        "place": title if hub_id(title) else "path/to/" + re.sub(r"[^\w.-]", "-", title),
    }
    body = _environment().from_string(_resource()).render(context)
    return checked(f"---\n{data.to_yaml()}\n---\n{body}", data)


def _context(
    record: RunRecord,
    recipe: Mapping[str, Any],
    outcome: Outcome,
    summary: Mapping[str, Any],
    scores: Sequence[parts.ScoreRow],
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the template shows, in words."""
    builtin = parts.builtin_model(record, recipe)
    evaluated = [stage for stage in record.stages if stage.samples]
    estimate = outcome.last.estimate if outcome.last else None
    tasks = [(task, row) for found in results for task, row in found["tasks"].items()]
    overall = parts.overall(outcome, summary, scores)
    evaluation = recipe.get("evaluation") or {}
    return {
        "marker": MARKER,
        "description": recipe.get("description") or "",
        "made_from": _made_from(record, recipe),
        "outcome": overall,
        "with_intervals": any(row.interval for row in scores),
        "asked": parts.asked(recipe, estimate.num_problems if estimate else None),
        "scores": scores,
        "kinds": [kind for kind in outcome.kinds if kind.final.num_problems > 1],
        "benchmarks": [row for found in results for row in _benchmarks(found)],
        "benchmark_note": _benchmark_note(results),
        "remarks": _remarks(tasks),
        "stages": parts.stage_rows(record, recipe),
        "kept": parts.kept_lines(record),
        "dropped": parts.dropped_lines(record),
        "made_with": _made_with(record),
        "recipe": _without_places(record.recipe.strip()) or "not recorded",
        "recipe_file": f"{record.name}.yaml",
        "prompts": _prompts(recipe, tasks),
        "examples": _one_of_each(evaluated),
        "limits": parts.limit_lines(record, recipe, outcome, [task for task, _ in tasks], bool(scores)),
        "licences": parts.licence_rows(record, recipe, builtin.license if builtin else ""),
        "max_new_tokens": evaluation.get("max_new_tokens", 256),
        "question": _QUESTION,
    }


def _one_of_each(evaluated: Sequence[StageRecord]) -> list[Example]:
    """A problem learned, one lost and one still wrong, drawn by a hash of their id and not by hand."""
    if len(evaluated) < 2:
        return []
    found = pick_examples(evaluated[0].samples, evaluated[-1].samples)
    return list({example.title: example for example in reversed(found)}.values())[::-1]


def _benchmarks(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every task, then the suite's averages, in words."""
    rows = []
    for name, task in results["tasks"].items():
        limit = task.get("limit")
        whole = f" of {limit['documents']:,}" if limit else ""
        value = _value(task["metrics"].get(task["primary"]))
        title = str(task.get("title") or name)
        rows.append(
            {"title": title, "metric": task["primary"], "value": value, "documents": f"{task['n']:,}{whole}"}
        )
    for name, metric in (results.get("averages") or {}).items():
        if metric is not None:
            title = "Average" if name == "all" else f"Average {name.replace('_', ' ')}"
            rows.append({"title": title, "metric": "mean of rows", "value": _value(metric), "documents": ""})
    return rows


def _remarks(tasks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Deviations from the published settings, and what was asked in part."""
    found = [
        f"{row.get('title') or task}: {remark}"
        for task, row in tasks
        for remark in (*row.get("deviations", ()), *row.get("notes", ()))
    ]
    return list(dict.fromkeys(found))


def _benchmark_note(results: Sequence[Mapping[str, Any]]) -> str:
    presets = sorted({str(found.get("preset")) for found in results if found.get("preset")})
    commits = sorted({str(found["git"]["commit"])[:12] for found in results if found.get("git")})
    settings = f"Settings of the published cards, preset {' and '.join(f'`{p}`' for p in presets)}"
    at = f", measured at commit {' and '.join(commits)}" if commits else ""
    return f"{settings}{at}. Averages are of unrounded rows."


def _made_from(record: RunRecord, recipe: Mapping[str, Any]) -> str:
    builtin = parts.builtin_model(record, recipe)
    kinds = " → ".join(parts.label_of(kind) for kind in parts.stage_kinds(record, recipe)) or "no training"
    open_stages = [stage.label for stage in record.stages if stage.done is None]
    left = f" ({', '.join(open_stages)} not finished)" if open_stages else ""
    name = str((record.manifest.get("model") or {}).get("name") or "an unnamed model")
    hub = builtin.base_model if builtin else hub_id(name)
    base = f"[{hub}](https://huggingface.co/{hub})" if hub else f"`{plain(Path(name).name, 100)}`"
    return f"{base} after {kinds}{left}, trained with `posttrain` {_version(record)}."


def _made_with(record: RunRecord) -> str:
    """Commit, seed, machine and versions, one sentence each."""
    manifest = record.manifest
    git, machine = manifest.get("git") or {}, manifest.get("machine") or {}
    versions = manifest.get("versions") or {}
    changed = " with local changes" if git.get("dirty") else ""
    commit = f"commit `{git['commit']}`{changed}" if git.get("commit") else "no commit recorded"
    device = ", ".join(str(machine[key]) for key in ("cpu", "device", "dtype") if machine.get(key))
    known = ", ".join(
        f"{package} {versions[package]}" for package in ("torch", "transformers") if package in versions
    )
    finished = manifest.get("finished")
    when = f"finished {finished}" if finished else "**this run is not finished**"
    facts = [f"posttrain {_version(record)}, {commit}", f"seed {manifest.get('seed')}", device, known, when]
    return (
        f"Made with {'; '.join(fact for fact in facts if fact)}. Recipe hash `{manifest.get('recipe_hash')}`."
    )


def _prompts(recipe: Mapping[str, Any], tasks: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    template = recipe.get("chat_template")
    if not template:
        named = "the base model's own chat template, stored with this model"
    else:
        named = f"the chat template `{Path(str(template)).name}`, stored with this model"
    text = (
        f"A problem's messages are rendered through {named}; what it adds, such as a default system turn, is in "
        "training and evaluation alike."
    )
    if not tasks:
        return text
    return f"{text} `posttrain eval show-prompt TASK` prints a benchmark's exact prompt, text and token ids."


def _licence_note(licence: object) -> str:
    if not licence:
        return (
            "No licence is stated for this model: the front matter leaves it out. State one with `--license` once "
            "the licences above are known to allow it."
        )
    return (
        f"The front matter says `{licence}`. Whether the terms of the base model and of every data source allow "
        "that is for the publisher to check; answers of other models in the data may bring terms of their own."
    )


def _without_places(recipe: str) -> str:
    """`recipe` with folders of this machine left out: of an absolute path only its last part."""
    return re.sub(r"""(?<=[:-] )(['"]?)[/~][^\n,'"}\]]*/(?=[^\n/])""", r"\1", recipe)


def _refuse_foreign(path: Path) -> None:
    if path.exists() and MARKER not in path.read_text(encoding="utf-8", errors="replace"):
        raise CheckpointError(
            f"{path} was not written by `posttrain card`; give another --out, or move it away"
        )


def _environment() -> Environment:
    environment = Environment(
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": _text,
        "cell": _cell,
        "fenced": _fenced,
        "plain": plain,
        "percent": percent,
    }
    environment.globals["bracket"] = bracket
    return environment


def _resource() -> str:
    return resources.files("posttrain.report").joinpath("model_card.md").read_text(encoding="utf-8")


def _text(value: object) -> str:
    """One line that cannot become markup: no HTML, no line breaks."""
    return re.sub(r"[ \t\r\n]+", " ", plain(value).replace("&", "&amp;").replace("<", "&lt;")).strip()


def _cell(value: object) -> str:
    return _text(value).replace("|", "\\|")


def _fenced(text: str, language: str = "text") -> str:
    """`text` in a code fence longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{plain(text, 20_000)}\n{fence}"


def _value(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "none"
    error = "" if metric["stderr"] is None else f" ± {rounded(metric['stderr']):.1f}"
    return f"{rounded(metric['value']):.1f}{error}"


def _version(record: RunRecord) -> str:
    return str((record.manifest.get("versions") or {}).get("posttrain") or posttrain.__version__)
