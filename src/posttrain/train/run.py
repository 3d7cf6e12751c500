"""A recipe from start to report: every stage once, each from where it stands."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.config.chain import (
    REWARD_MODEL,
    Origin,
    model_names,
    newest_policy,
    reference_of,
    reward_model_of,
    start_of,
)
from posttrain.config.load import dump_recipe
from posttrain.config.parts import Rejection
from posttrain.config.recipe import Recipe
from posttrain.config.sizing_sampler import sampling_of
from posttrain.data.gather import gather_preferences, gather_problems, identity
from posttrain.data.render import Renderer
from posttrain.errors import CheckpointError
from posttrain.evaluation.run import answer
from posttrain.model.atomic import atomic_folder
from posttrain.model.fingerprint import fingerprint
from posttrain.model.heads import check_policy, check_scorer
from posttrain.model.load import check_vocabulary, load_model, load_tokenizer, pick_device, pick_dtype
from posttrain.model.memory import give_back
from posttrain.model.resolve import resolve
from posttrain.report.outcome import write_summary
from posttrain.report.run_page import write_report
from posttrain.rollout.open import engine_for
from posttrain.train.folder import RunFolder, StageFolder, read_json, stage_key, write_json, writing
from posttrain.train.manifest import describe_run, now
from posttrain.train.measurements import check_measure, measure_identity
from posttrain.train.progress import Progress
from posttrain.train.stage import run_stage
from posttrain.train.work import Work

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.config.parts import Source

CODE_VERSION = 1
"""Raise this when the same recipe and data come to another model than before."""

_CLAIM = "claim.json"
"""Names the key that a stage folder was begun with."""


def run(recipe: Recipe, *, console: Console) -> Path:
    """Run `recipe`, going on from what its folder holds; returns the folder.

    Finished stages are skipped when everything that decides them is unchanged. A stage whose inputs have
    changed is refused, not overwritten.
    """
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    folder = RunFolder(recipe.output_path)
    folder.prepare()
    start = resolve(recipe.model, recipe.model_revision, console=console)
    named = {name: resolve(name, console=console) for name in model_names(recipe.stages).values()}
    with Progress(console) as progress:
        _Run(recipe, folder, start, named, progress).go()
    return folder.root


class _Run:
    """What the stages of one run share."""

    def __init__(
        self, recipe: Recipe, folder: RunFolder, start: Path, named: dict[str, Path], progress: Progress
    ) -> None:
        self.recipe, self.folder, self.start, self.progress = recipe, folder, start, progress
        self.named = named
        """Folders of the models that stages name, by name."""
        self.start_sha256 = fingerprint(start)
        self.device = pick_device(recipe.runtime.device)
        self.dtype = pick_dtype(recipe.runtime.compute_dtype, self.device)
        self.renderer = Renderer(load_tokenizer(start), recipe.chat_template)
        model = load_model(start, dtype=self.dtype, device=self.device)
        self.engine = engine_for(
            model,
            self.renderer,
            dtype=self.dtype,
            device=self.device,
            cache_gib=recipe.runtime.sampler_cache_gib,
        )
        self.engine.load(model.state_dict(), version=0)
        self.held: Path | None = start
        """The folder of the policy whose weights the engine has; None when it has none."""

    def go(self) -> None:
        """Base evaluation, every stage, final model, summary, report."""
        keys = self._keys()
        base, *later = self._folders()
        for folder, key in zip([base, *later], keys, strict=True):
            _refuse_other(folder, key)
        self._check_models()
        self._check_data()
        self._write_manifest(keys)
        self._stage(base, keys[0], None)
        for index, (folder, key) in enumerate(zip(later, keys[1:], strict=True)):
            self._stage(folder, key, self._work(index, folder))
        final = newest_policy(self.recipe.stages)
        self._publish(later[-1].model if final is None else self._model(final))
        manifest = read_json(self.folder.manifest)
        self.folder.write_manifest({**manifest, "finished": manifest["finished"] or now()})
        write_summary(self.folder.root)
        write_report(self.folder.root)

    def _folders(self) -> list[StageFolder]:
        """The base evaluation's folder and each stage's."""
        names = [self.recipe.stage_folder(index) for index in range(len(self.recipe.stages))]
        return [self.folder.stage(0, "base"), *(StageFolder(self.folder.stages / name) for name in names)]

    def _work(self, index: int, folder: StageFolder) -> Work:
        stages = self.recipe.stages
        reward_model = reward_model_of(stages, index)
        return Work(
            recipe=self.recipe,
            stage=stages[index],
            folder=folder,
            start=self._model(start_of(stages, index)),
            reference_start=self._model(reference_of(stages, index)),
            reward_model=None if reward_model is None else self._model(reward_model),
            renderer=self.renderer,
            engine=self.engine,
            device=self.device,
            dtype=self.dtype,
            progress=self.progress,
            lora=self.recipe.lora_of(index),
        )

    def _model(self, origin: Origin) -> Path:
        """The folder of a model that a stage uses."""
        if origin is None:
            return self.start
        if isinstance(origin, str):
            return self.named[origin]
        return StageFolder(self.folder.stages / self.recipe.stage_folder(origin)).model

    def _check_models(self) -> None:
        """Every named model against what it is named for: the wrong one must not wait for its stage."""
        stages = self.recipe.stages
        for index, stage in enumerate(stages):
            reward_model = reward_model_of(stages, index)
            if isinstance(reward_model, str):
                check_scorer(self.named[reward_model])
                check_vocabulary(self.named[reward_model], self.renderer.tokenizer)
            for origin in (start_of(stages, index), reference_of(stages, index)):
                if isinstance(origin, str):
                    check_vocabulary(self.named[origin], self.renderer.tokenizer)
                    check_policy(self.named[origin], like=None if stage.kind == REWARD_MODEL else self.start)

    def _check_data(self) -> None:
        """Read every stage's problems and pairs once: a bad row must not wait for its stage to be refused."""
        for stage in self.recipe.stages:
            for name, sources in stage.sources:
                if name.endswith("problems"):
                    gather_problems(sources, seed=self.recipe.seed)
                elif sources and stage.kind in ("dpo", REWARD_MODEL):
                    gather_preferences(sources, seed=self.recipe.seed)
            if stage.measure is not None:
                check_measure(stage.measure, self.renderer, self.engine, self.progress.console)

    def _stage(self, folder: StageFolder, key: str, work: Work | None) -> None:
        """Train (unless it is the base) and evaluate one stage, or skip it if it is done."""
        if folder.is_done(key):
            self.progress.console.print(f"{folder.name}: finished before", highlight=False)
            return
        if not (folder.root / _CLAIM).is_file():
            folder.prepare()
            write_json(folder.root / _CLAIM, {"key": key, "started": now()})
        started = time.monotonic()
        makes_policy = work is None or work.stage.kind != REWARD_MODEL
        if work is not None and not folder.model.is_dir():
            if isinstance(sampling_of(work.stage.settings), Rejection):
                self._hold(work.start)  # it samples before it learns; the others load what they sample with
            run_stage(work)
            self.held = folder.model if makes_policy else None
            give_back()
        elif work is not None:
            for left in (folder.checkpoints, folder.kept_weights):  # the model was there first
                shutil.rmtree(left, ignore_errors=True)
        if makes_policy:
            self._hold(self.start if work is None else folder.model)
            self._evaluate(folder)
        folder.finish(key, seconds=time.monotonic() - started, warnings=self.progress.take_warnings())

    def _hold(self, model: Path) -> None:
        """Give the engine the weights of the policy in the folder `model`, unless it has them."""
        if model != self.held:
            weights = load_model(model, dtype=self.dtype, device=self.device).state_dict()
            self.engine.load(weights, version=0)
            self.held = model

    def _evaluate(self, folder: StageFolder) -> None:
        settings = self.recipe.evaluation
        if settings is None:
            return
        problems, _ = gather_problems([settings.problems], seed=settings.seed)
        label = f"{folder.name} held-out"
        answer(
            self.engine,
            self.renderer,
            problems,
            settings,
            out=folder.heldout,
            progress=self.progress,
            label=label,
        )

    def _keys(self) -> list[str]:
        """The key of the base evaluation and of each stage: equal keys, equal results."""
        settings = self.recipe.evaluation
        common = {
            "code": CODE_VERSION,
            "model": self.start_sha256,
            "renderer": self.renderer.fingerprint,
            "dtype": str(self.dtype),
            "seed": self.recipe.seed,
            "evaluation": None if settings is None else settings.model_dump(mode="json"),
            "heldout": None if settings is None else identity(settings.problems, seed=settings.seed),
        }
        keys = [stage_key(common)]
        for index, stage in enumerate(self.recipe.stages):
            sources: list[Source] = [source for _, group in stage.sources for source in group]
            parts = {
                "before": keys[-1],
                "folder": self.recipe.stage_folder(index),
                "settings": stage.settings.model_dump(mode="json"),
                "sources": [identity(source, seed=self.recipe.seed) for source in sources],
            }
            origins = [
                origin(self.recipe.stages, index) for origin in (start_of, reference_of, reward_model_of)
            ]
            if stage.start is not None:
                parts["start"] = origins[0]
            if (lora := self.recipe.lora_of(index)) is not None:
                parts["lora"] = lora.model_dump(mode="json")
            if stage.measure is not None:
                parts["measure"] = measure_identity(stage.measure)
            if models := [fingerprint(self.named[origin]) for origin in origins if isinstance(origin, str)]:
                parts["models"] = models
            keys.append(stage_key(parts))
        return keys

    def _write_manifest(self, keys: list[str]) -> None:
        text = dump_recipe(self.recipe)
        self.folder.write_recipe(text)
        folders = self._folders()
        kinds = ["base", *(stage.kind for stage in self.recipe.stages)]
        manifest = describe_run(
            name=self.recipe.name,
            recipe_hash=hashlib.sha256(text.encode()).hexdigest(),
            seed=self.recipe.seed,
            model={"name": self.recipe.model, "source": str(self.start), "sha256": self.start_sha256},
            stages=[
                {"name": folder.name, "kind": kind, "key": key}
                for folder, kind, key in zip(folders, kinds, keys, strict=True)
            ],
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
        )
        if self.folder.manifest.is_file():
            before = read_json(self.folder.manifest)
            manifest["created"] = before["created"]
            if all(folder.is_done(key) for folder, key in zip(folders, keys, strict=True)):
                manifest["finished"] = before["finished"]
        self.folder.write_manifest(manifest)

    def _publish(self, model: Path) -> None:
        """The last stage's model as the run's own, sharing its files where the disk allows."""
        with writing(self.folder.model), atomic_folder(self.folder.model) as partial:
            shutil.copytree(model, partial, copy_function=_link_or_copy, dirs_exist_ok=True)


def _refuse_other(folder: StageFolder, key: str) -> None:
    """CheckpointError when the folder holds work of another key."""
    claim = folder.root / _CLAIM
    if claim.is_file() and read_json(claim).get("key") != key:
        raise CheckpointError(
            f"{folder.root} holds a stage with other settings, data or code; "
            "delete that folder to redo it, or choose another output"
        )


def _link_or_copy(source: str, target: str) -> Any:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
