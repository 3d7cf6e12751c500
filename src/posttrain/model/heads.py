"""Scalar heads: one number after each token, for reward models and value models.

The body is the decoder of a causal language model; the head is one row of weights on its last, normalised
hidden state. In memory and on disk the whole is Hugging Face's `...ForSequenceClassification` with one label.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain.errors import ModelError
from posttrain.model.decoder import Decoder, Shape
from posttrain.model.load import load_model, settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from posttrain.records import Batch

_KIND = "ForSequenceClassification"


def is_scorer(folder: Path) -> bool:
    """Whether the model in `folder` has a head that scores in place of an output projection."""
    try:
        architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read: {error}") from error
    return str(architectures[0]).endswith(_KIND)


def check_scorer(folder: Path) -> None:
    """ModelError unless the model in `folder` is a reward model."""
    if not is_scorer(folder):
        raise ModelError(
            f"{folder} is not a reward model but a language model; name one that a reward_model stage made"
        )


def check_policy(folder: Path, *, like: Path | None) -> None:
    """ModelError if the model in `folder` is a reward model, or has another shape than the one in `like`."""
    from transformers import AutoConfig

    if is_scorer(folder):
        raise ModelError(f"{folder} is a reward model, which writes nothing; name a language model")
    if like is not None and Shape.of(AutoConfig.from_pretrained(folder)) != Shape.of(
        AutoConfig.from_pretrained(like)
    ):
        raise ModelError(
            f"{folder} has another shape than the run's model, and one run samples from one shape; start a "
            "recipe of its own from it"
        )


def load_scorer(folder: Path, *, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The reward model in `folder`; the head stays float32. ModelError if it is none, or none of ours."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging

    check_scorer(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        Shape.of(config)
        logging.disable_progress_bar()
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ModelError(f"the reward model in {folder} cannot be loaded: {reason}") from error
    if config.num_labels != 1:
        raise ModelError(f"{folder} gives {config.num_labels} numbers for a text; a reward model gives one")
    head = model.score.weight.data.to(device, torch.float32)
    model = settle(model, dtype=dtype, device=device)
    model.score.weight.data = head
    return model  # type: ignore[no-any-return]


def new_scorer(folder: Path, *, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    """The body of the language model in `folder` under a new head."""
    from transformers import AutoModelForSequenceClassification

    causal: Any = load_model(folder, dtype=dtype, device=device)
    with torch.device("meta"):
        scorer: Any = AutoModelForSequenceClassification.from_config(_one_label(causal.config))
    scorer.model = causal.model
    scorer.score = _new_head(scorer.config.hidden_size, device=device, seed=seed)
    return scorer.eval()  # type: ignore[no-any-return]


def random_scorer(folder: Path, *, dtype: torch.dtype, device: torch.device, seed: int) -> PreTrainedModel:
    """Random weights of the shape of the model in `folder`, under a new head."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = _one_label(AutoConfig.from_pretrained(folder))
    Shape.of(config)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        torch.manual_seed(seed)
        scorer: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    scorer = settle(scorer, dtype=dtype, device=device)
    scorer.score = _new_head(config.hidden_size, device=device, seed=seed)
    return scorer  # type: ignore[no-any-return]


def batch_scores(decoder: Decoder, batch: Batch) -> Tensor:
    """(N,) float32: the head's number after each token of the batch, padding-free.

    `decoder` is over a scorer. The head works in float32 whatever the body computes in.
    """
    hidden = decoder.hidden(batch.ids, batch.positions, batch.lengths)
    weight: Tensor = decoder.module.score.weight
    # row by row: a product with one column may sum a row otherwise by its place, and equal rows tie
    return (hidden.float() * weight.float()).sum(1)


def padded(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` that pads on the right with a token that ends no answer.

    Hugging Face's scorers read the last token that is not the padding's, so padding with the token that ends
    an answer would move the score one token forward. ModelError when there is no other special token.
    """
    taken = {*stop_ids, tokenizer.eos_token_id, tokenizer.bos_token_id}
    special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [token for token, id in special.items() if id not in taken]
    own = [token for token in free if token == tokenizer.pad_token]
    named = [token for token in free if "pad" in token.lower()]
    chosen = next(iter([*own, *named, *free]), None)
    if chosen is None:
        raise ModelError(
            "the tokenizer has no special token to pad with but those that end an answer; add one to it"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = chosen
    tokenizer.padding_side = "right"
    return tokenizer


def _one_label(config: Any) -> Any:
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: "score"}, {"score": 0}
    return config


def _new_head(hidden: int, *, device: torch.device, seed: int) -> nn.Linear:
    """(1, H) weights from N(0, 1 / sqrt(H + 1)), so that scores start near 0 (arXiv:2009.01325, code release)."""
    head = nn.Linear(hidden, 1, bias=False, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        head.weight.normal_(0.0, 1 / math.sqrt(hidden + 1), generator=generator)
    return head.to(device)
