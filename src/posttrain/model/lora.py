"""Low-rank adapters on a frozen model (arXiv:2106.09685): W x becomes (W + scale * B A) x.

peft puts the adapters into the module, so that peft's names, settings and files stay peft's. The frozen weights
keep the dtype they were loaded in; A and B are float32. The decoder multiplies by the merged weight, rounded once
to the compute dtype: exactly what the engine holds, so that sampler and learner agree as they do without adapters.
A product B A that is kept apart would move the learner before it moves the bfloat16 weights that sample.
The backward pass merges again and takes the gradients of A and B through the rank, never that of W.

Left out: dropout, adapters of embeddings, DoRA, quantised weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain.model.ops import Weight, linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from posttrain.config.lora import LoRA

NAME = "default"
"""What peft calls an adapter that nobody named."""


def adapt(module: PreTrainedModel, settings: LoRA, *, seed: int) -> PreTrainedModel:
    """Freeze `module` and put an adapter on each of the settings' projections; returns it.

    A is uniform in +-1/sqrt(inputs), peft's own start, from `seed`; B is 0, so that nothing has changed yet. A
    scalar head is new or meant to move, and learns in full.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=list(settings.targets),
        use_rslora=settings.use_rslora,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
        inject_adapter_in_model(config, module, NAME)
    generator = torch.Generator().manual_seed(seed % 2**63)
    for _, layer in adapted_layers(module):
        for parts in (layer.lora_A, layer.lora_B):
            parts[NAME].weight.data = parts[NAME].weight.data.float()
        down = layer.lora_A[NAME].weight
        bound = 1 / math.sqrt(down.shape[1])
        down.data.copy_(torch.empty(down.shape).uniform_(-bound, bound, generator=generator))
        layer.lora_B[NAME].weight.data.zero_()
    if hasattr(module, "score"):
        module.score.requires_grad_(True)
    return module


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and peft layer of every adapted projection."""
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer"):
            yield name, layer


def is_adapted(module: nn.Module) -> bool:
    """Whether `module` has adapters."""
    return next(adapted_layers(module), None) is not None


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """`module` as it was before it was adapted, for as long as the block lasts."""
    layers = [layer for _, layer in adapted_layers(module)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """(O, I) weight + scale * up @ down, in float32 (float64 if the weight is); down is (r, I), up (O, r).

    Source: arXiv:2106.09685 eq. 3.
    """
    precise = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(precise), up.to(precise), down.to(precise), alpha=scale)


class _AdaptedLinear(torch.autograd.Function):
    """x (W + s B A)' with W frozen; keeps x and what is there anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return Weight(merge(weight, down, up, scale), x.dtype).of(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, down, up = ctx.saved_tensors
        grad_x = grad @ merge(weight, down, up, ctx.scale).to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_up = grad.t() @ (x @ down.to(x.dtype).t())
        grad_down = (grad @ up.to(grad.dtype)).t() @ x
        return (
            grad_x,
            None,
            grad_down.to(down.dtype).mul_(ctx.scale),
            grad_up.to(up.dtype).mul_(ctx.scale),
            None,
        )


def adapted_linear(x: Tensor, layer: Any) -> Tensor:
    """(N, O) in x's dtype: the adapted projection `layer` of x (N, I), with its adapter unless that is off."""
    weight = layer.base_layer.weight
    if layer.disable_adapters:
        return linear(x, weight)
    down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    return _AdaptedLinear.apply(x, weight, down, up, layer.scaling[NAME])  # type: ignore[no-any-return]


class MergedWeights(Mapping[str, Tensor]):
    """The weights of an adapted module under the names it had before, each merged when it is asked for.

    `base` holds frozen weights that are more precise than the module's own, such as those of the file that the
    module was loaded from; None takes the module's. The module is not changed.
    """

    def __init__(self, module: nn.Module, *, base: Mapping[str, Tensor] | None = None) -> None:
        self._layers = {f"{name}.weight": layer for name, layer in adapted_layers(module)}
        self._base: Mapping[str, Tensor] = {} if base is None else base
        self._own = {
            name.replace(".base_layer.", "."): parameter
            for name, parameter in module.named_parameters()
            if ".lora_" not in name
        }

    def __getitem__(self, name: str) -> Tensor:
        weight = self._own[name].detach()
        if not self._own[name].requires_grad and name in self._base:
            weight = self._base[name].to(weight.device)
        layer = self._layers.get(name)
        if layer is None:
            return weight
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        return merge(weight, down.detach(), up.detach(), layer.scaling[NAME])

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)
