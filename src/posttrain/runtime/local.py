"""The learner in this process: one module, one optimizer. The default, and the reference for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.errors import CheckpointError, TrainingError
from posttrain.model.decoder import Decoder
from posttrain.model.logprobs import token_logprobs
from posttrain.model.lora import MergedWeights, is_adapted
from posttrain.records import Batch
from posttrain.runtime.learner import LossFn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with its tensors on `device`."""
    moved = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})


def batch_logprobs(decoder: Decoder, batch: Batch, *, temperature: float) -> Tensor:
    """(N,) float32 nats: log p(ids[t] | earlier tokens of its row) where `batch.mask`, zero elsewhere.

    Only hidden states that predict a target meet the output projection.
    """
    targets = batch.mask.nonzero()[:, 0]  # first, because it waits for a GPU
    hidden = decoder.hidden(batch.ids, batch.positions, batch.lengths)
    chosen = token_logprobs(
        hidden[targets - 1],
        decoder.head_weight,
        batch.ids[targets],
        temperature=temperature,
        accumulate=True,
    )
    return chosen.new_zeros(len(batch.ids)).index_copy(0, targets, chosen)


class FrozenScorer:
    """A reference policy: weights in the compute dtype, no gradient."""

    def __init__(
        self, module: PreTrainedModel, *, compute_dtype: torch.dtype, temperature: float = 1.0
    ) -> None:
        self._decoder = Decoder(module.requires_grad_(False), compute_dtype=compute_dtype)
        self._device = next(module.parameters()).device
        self._temperature = temperature

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """(N,) float32 nats on the CPU; zero where `batch.mask` is False."""
        return batch_logprobs(
            self._decoder, to_device(batch, self._device), temperature=self._temperature
        ).cpu()


class LocalLearner:
    """A `Learner` over float32 master weights and AdamW moments, computing in `compute_dtype`.

    Of a module with adapters (`model/lora.py`) only they are masters; the rest stays frozen as it is.

    `temperature` divides the logits, so that log-probabilities are those of the sampler's distribution.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        compute_dtype: torch.dtype,
        temperature: float = 1.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.module = module if is_adapted(module) else module.float().requires_grad_(True)
        self.device = next(module.parameters()).device
        self.temperature = temperature
        self._decoder = Decoder(
            module, compute_dtype=compute_dtype, gradient_checkpointing=gradient_checkpointing
        )
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        # bfloat16 masters would swallow updates of a millionth; these are float32 whatever the folder holds
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )
        self.num_updates = 0

    def forward_backward(self, batch: Batch, loss_fn: LossFn) -> dict[str, float]:
        """Add the gradient of `loss_fn` on `batch`; its metrics as numbers, to be summed over the step."""
        batch = to_device(batch, self.device)
        loss, metrics = loss_fn(batch_logprobs(self._decoder, batch, temperature=self.temperature), batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: float(value) for name, value in metrics.items()}

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """(N,) float32 nats on the CPU; zero where `batch.mask` is False."""
        return batch_logprobs(
            self._decoder, to_device(batch, self.device), temperature=self.temperature
        ).cpu()

    def optim_step(self, *, learning_rate: float, max_grad_norm: float | None) -> dict[str, float]:
        """Clip the step's whole gradient to `max_grad_norm`, update, and clear it.

        `optim/grad_norm` is the norm before clipping. A gradient that is not finite is an error: updating
        with it would lose the run.
        """
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters, float("inf") if max_grad_norm is None else max_grad_norm
        )
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient's norm is {float(norm)} at update {self.num_updates + 1}; "
                "lower the learning rate, or look at the rows of this step"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        return {"optim/grad_norm": float(norm), "optim/learning_rate": learning_rate}

    def weights(self) -> Mapping[str, Tensor]:
        """The master weights themselves, under their Hugging Face names; copy what must not change.

        With adapters, each weight merged with its adapter, in float32, when it is asked for.
        """
        if is_adapted(self.module):
            return MergedWeights(self.module)
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}

    def _masters(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.module.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """Master weights (of a module with adapters, those alone), AdamW moments and the count of updates."""
        return {
            "weights": self._masters(),
            "optimizer": self._optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; CheckpointError if it is another model's."""
        own = self._masters()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state["weights"].items()}:
            raise CheckpointError("the checkpoint holds the weights of another model")
        for name, parameter in own.items():
            parameter.copy_(state["weights"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.num_updates = int(state["num_updates"])
