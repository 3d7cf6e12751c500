"""A Hugging Face folder into memory: weights, tokenizer, and what this machine computes with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.errors import ModelError
from posttrain.model.decoder import Shape
from posttrain.model.memory import keep_pages
from posttrain.model.native.allocator import fit_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            "the recipe asks for device 'cuda' but torch sees no GPU; use device 'cpu' or 'auto'"
        )
    return torch.device(name)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 in hardware: any recent GPU, or AVX512-BF16 / AMX on a CPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    flags = _cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware has it, else float32."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The causal language model in `folder`, ready to read; ModelError in one sentence if it cannot be.

    Matrices become `dtype`; vectors (the norms' weights) float32, which every forward pass uses them in.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    try:
        config = AutoConfig.from_pretrained(folder)
        Shape.of(config)
        # transformers would load it, under an output projection that was never trained
        if str((config.architectures or [""])[0]).endswith("ForSequenceClassification"):
            raise ModelError(f"{folder} is a reward model, which writes nothing; `posttrain rank` uses it")
        logging.disable_progress_bar()
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ModelError(f"the model in {folder} cannot be loaded: {reason}") from error
    return settle(model, dtype=dtype, device=device)


def settle(model: Any, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """`model` on `device`, ready to read: matrices in `dtype`, vectors in float32, dropout off."""
    keep_pages()
    fit_blocks()
    for parameter in model.parameters():
        is_matrix = parameter.dim() > 1
        # vectors are copied even when they fit: a view of one would keep the whole file mapped
        parameter.data = parameter.data.to(device, dtype if is_matrix else torch.float32, copy=not is_matrix)
    model.to(device)
    model.eval()  # dropout stays off in every stage of the recipe
    return model  # type: ignore[no-any-return]


def check_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """ModelError unless every token of `tokenizer` has the same id in the model in `folder`.

    The other may have tokens besides, such as one to pad with: no row will hold them.
    """
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(folder).get_vocab()
    different = [
        token for token, id in sorted(ours.items(), key=lambda item: item[1]) if theirs.get(token) != id
    ]
    if different:
        token = different[0]
        there = theirs.get(token, "missing")
        raise ModelError(
            f"{folder} has another vocabulary than the run's model: token {token!r} is {ours[token]} here and "
            f"{there} there; take a model that shares the tokenizer"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; ModelError in one sentence if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {reason}") from error
