"""The trainable copy of the policy, as the loops see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from posttrain.records import Batch

if TYPE_CHECKING:
    from torch import Tensor

LossFn = Callable[["Tensor", Batch], tuple["Tensor", dict[str, "Tensor"]]]
"""`(logprobs, batch) -> (loss, metrics)`.

`logprobs` is (N,) float32 nats: log p(ids[t] | before) where `batch.mask`, zero elsewhere. Loss and
metrics are already divided by the whole optimizer step's denominator, so every reduction is a sum.
"""


class Scorer(Protocol):
    """Anything that gives log-probabilities: the learner itself, or a frozen reference policy."""

    def logprobs(self, batch: Batch) -> Tensor:
        """(N,) float32 nats without gradient; zero where `batch.mask` is False."""
        ...


class Learner(Scorer, Protocol):
    """Local, FSDP and Ray learners answer the same verbs; the loops never ask which they have."""

    def forward_backward(self, batch: Batch, loss_fn: LossFn) -> dict[str, float]:
        """Add the gradient of `loss_fn` on `batch` to the step's; return its metrics."""
        ...

    def optim_step(self, *, learning_rate: float, max_grad_norm: float | None) -> dict[str, float]:
        """Clip the summed gradient, update, clear it; return `optim/*` metrics."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The current weights under their Hugging Face names."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs: master weights, moments, update count."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        ...
