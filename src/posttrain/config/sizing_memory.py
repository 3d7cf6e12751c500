"""Bytes that a stage holds on one device, part by part, in each of the phases it goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from posttrain.config.grpo import GRPO
from posttrain.config.lora import LoRA
from posttrain.config.parts import Rejection, Runtime
from posttrain.config.ppo import PPO
from posttrain.config.reward_model import RewardModel
from posttrain.config.sizing_batch import MicroBatch, largest_micro_batch
from posttrain.config.sizing_device import GIB, PEFT_GIB, Fleet
from posttrain.config.sizing_layer import hidden_bytes, layer_bytes, layer_scratch, projection_bytes
from posttrain.config.sizing_model import ModelShape
from posttrain.config.sizing_sampler import SamplerSize, sampler_size
from posttrain.config.stages import Settings

WIDE = 4
"""Bytes of a float32 number: masters, gradients, moments, the residual stream."""

PARTS: Mapping[str, str] = {
    "weights": "what is trained in float32, or frozen under adapters in the compute dtype",
    "weights cast": "the layers' matrices in the compute dtype, one at a time, or gathered",
    "gradients": "float32, of what is trained",
    "moments": "AdamW's two, float32, of what is trained",
    "activations": "what the backward pass reads",
    "logits": "the output projection's chunk of logits, and the block of its gradient that comes next",
    "scratch": "the largest temporaries of a layer, of adapters being merged, or of prompts being read",
    "reference": "the frozen policy that a KL divergence is measured to",
    "value model": "PPO's second model with its gradients and moments, and the reward model if it scores",
    "sampler": "the generator's own copy of the weights",
    "KV cache": "keys and values of the completions in the making",
    "copies": "weights that adapters are merged into to be saved",
    "process": "interpreter and libraries, or the GPU's context",
    "allocator": "what the allocator holds beyond blocks in use",
}
"""Every part that memory is counted in."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What is held at once."""

    name: str
    parts: Mapping[str, float]
    """Bytes by name in `PARTS`."""

    @property
    def gib(self) -> float:
        """All of it."""
        return sum(self.parts.values()) / GIB


@dataclass(frozen=True, slots=True)
class StageMemory:
    """A stage's phases; the largest is what a device must have."""

    phases: tuple[Phase, ...]
    batch: MicroBatch
    problem: str = ""
    """Why the stage cannot run at all, whatever the memory; empty if it can."""

    @property
    def peak(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.gib)


@dataclass(frozen=True, slots=True)
class Load:
    """What a stage's memory depends on."""

    shape: ModelShape
    settings: Settings
    runtime: Runtime
    fleet: Fleet
    lora: LoRA | None = None
    value_shape: ModelShape | None = None
    """Of PPO's value model, where a named reward model starts it; None is the policy's."""
    batch: MicroBatch = field(init=False)

    def __post_init__(self) -> None:
        batch = largest_micro_batch(self.settings, self.runtime.max_tokens_per_micro_batch)
        # frozen: the one field that follows from the others
        object.__setattr__(self, "batch", batch)

    @property
    def width(self) -> int:
        """Bytes of a number in the compute dtype."""
        wanted = self.runtime.compute_dtype
        return (
            2 if wanted == "bfloat16" or (wanted == "auto" and self.fleet.device.multiplies_bfloat16) else 4
        )

    @property
    def trains_scores(self) -> bool:
        """Whether the model has a scalar head in place of the output projection."""
        return isinstance(self.settings, RewardModel)

    @property
    def trained(self) -> int:
        """Parameters that learn."""
        return trained_parameters(self.shape, self.lora, scores=self.trains_scores)


def trained_parameters(shape: ModelShape, lora: LoRA | None, *, scores: bool) -> int:
    """Parameters that learn: all, or those of the adapters; a scalar head always does."""
    if lora is not None:
        return shape.adapter_parameters(lora) + (shape.hidden if scores else 0)
    return shape.body_parameters + shape.hidden if scores else shape.parameters


def weight_bytes(shape: ModelShape, lora: LoRA | None, width: int, *, scores: bool) -> float:
    """Of one learner's weights, on all devices together: float32 masters, and frozen ones under adapters."""
    size = shape.body_parameters if scores else shape.parameters
    frozen = width * size if lora is not None else 0
    return frozen + WIDE * trained_parameters(shape, lora, scores=scores)


def stage_memory(load: Load) -> StageMemory:
    """The phases of a stage on one of the fleet's devices.

    On several devices everything that lasts is divided evenly over all of them, as `fully_shard` does, a layer
    at a time is gathered, and each device has a micro-batch of its own.
    """
    settings = load.settings
    rejection = None if isinstance(settings, GRPO | PPO) else settings.rejection
    sampler = sampler_size(load.shape, settings, load.runtime, load.width, load.fleet)
    held, weights = _lasting(load), {"sampler": sampler.weights}
    phases = _learning(load, held, sampler)
    if isinstance(settings, GRPO | PPO) or isinstance(rejection, Rejection):
        before: dict[str, float] = held if rejection is None else {}
        sampling = before | weights | {"KV cache": sampler.cache, "scratch": sampler.scratch}
        phases.append(Phase("sampling", sampling))
    if load.fleet.count == 1:
        if not load.trains_scores:
            phases.append(Phase("publishing", held | weights))
        if load.fleet.device.is_cpu and load.lora is not None:
            size = load.shape.body_parameters if load.trains_scores else load.shape.parameters
            phases.append(Phase("saving", held | {"copies": float(WIDE * size)}))
    return StageMemory(tuple(_with_overhead(phase, load) for phase in phases), load.batch, sampler.problem)


def _lasting(load: Load) -> dict[str, float]:
    """Weights, moments, reference and value model on one device."""
    settings, shape, share = load.settings, load.shape, 1 / load.fleet.count
    parts = {
        "weights": weight_bytes(shape, load.lora, load.width, scores=load.trains_scores) * share,
        "moments": 2 * WIDE * load.trained * share,
    }
    if isinstance(settings, GRPO | PPO) and settings.kl_coefficient > 0:
        moves = isinstance(settings, GRPO) and settings.reference_refresh_steps is not None
        own = isinstance(settings, PPO) and settings.reference is not None
        # adapters switched off are the starting model, and no second copy
        if moves or own or load.lora is None:
            parts["reference"] = (WIDE if moves else load.width) * shape.parameters * share
    if isinstance(settings, PPO):
        other = load.value_shape or shape
        value = weight_bytes(other, load.lora, load.width, scores=True)
        value += 3 * WIDE * trained_parameters(other, load.lora, scores=True)
        judge = load.width * other.body_parameters if settings.reward_model_multiplier else 0
        parts["value model"] = (value + judge) * share
    return parts


def _learning(load: Load, held: dict[str, float], sampler: SamplerSize) -> list[Phase]:
    """The two moments at which a forward and backward pass holds most."""
    shape, batch, width, lora = load.shape, load.batch, load.width, load.lora
    recomputes, scores = load.runtime.gradient_checkpointing, load.trains_scores
    on_cpu = load.fleet.device.is_cpu
    layer = layer_bytes(shape, lora, width, on_cpu=on_cpu, recomputed=recomputes) * batch.packed_tokens
    stored = WIDE * shape.hidden * batch.packed_tokens if recomputes else layer
    gradients = WIDE * load.trained / load.fleet.count
    if getattr(load.settings, "generate_ahead", 0):
        # else the generator has no weights while its policy learns
        held = held | {"sampler": sampler.weights, "KV cache": sampler.cache}
    at_head = held | {
        "weights cast": _cast(load),
        "activations": shape.num_layers * stored + hidden_bytes(shape, batch, width, scores=scores),
        # the projection's is the first
        "gradients": 0.0 if scores or lora is not None else WIDE * float(shape.embedding_parameters),
        "logits": 0.0
        if scores
        else projection_bytes(shape, batch, width, trained=lora is None, on_cpu=on_cpu),
        "scratch": 0.0,
    }
    in_layer = at_head | {
        "logits": 0.0,
        "scratch": (layer if recomputes else 0.0) + layer_scratch(shape, lora, batch, width, load.fleet),
    }
    at_end = held | {
        "weights cast": _cast(load),
        "gradients": gradients,
        "activations": layer,
    }
    largest = max(at_head, in_layer, key=lambda parts: sum(parts.values()))
    if batch.per_update > 1:
        return [Phase("learning", largest | {"gradients": gradients})]
    return [Phase("learning", largest), Phase("learning's end", at_end)]


def _cast(load: Load) -> float:
    """Matrices in the compute dtype: one, or a recomputed layer's; two layers' and the ends' where gathered."""
    shape, width = load.shape, load.width
    if load.fleet.count > 1:
        ends = shape.embedding_parameters * (1 if shape.tied or load.trains_scores else 2)
        reduced = WIDE * shape.layer_parameters if load.lora is None else 0
        return width * (2 * shape.layer_parameters + ends) + reduced
    if width == WIDE or load.lora is not None:
        return 0.0
    recomputes = load.runtime.gradient_checkpointing
    return float(width * (shape.matrix_parameters if recomputes else shape.largest_matrix))


def _with_overhead(phase: Phase, load: Load) -> Phase:
    device = load.fleet.device
    used = sum(phase.parts.values())
    process = device.process_gib + (PEFT_GIB if load.lora is not None and device.is_cpu else 0)
    parts = {**phase.parts, "process": process * GIB, "allocator": device.slack * used}
    return Phase(phase.name, {name: size for name, size in parts.items() if size})
