"""What a model folder holds, as hashes: for run manifests, stage keys and the cache's own check."""

from __future__ import annotations

import hashlib
from pathlib import Path

_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


def hash_file(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a model in `folder`, by file name; subfolders are not looked at."""
    found = {path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.name: hash_file(path) for path in sorted(found)}


def fingerprint(folder: Path) -> str:
    """One sha256 for the whole model: it changes when any weight, token or template changes."""
    lines = [f"{name} {digest}\n" for name, digest in hash_files(folder).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
