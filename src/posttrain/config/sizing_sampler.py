"""Bytes of the generator: its copy of the weights, its cache, and the prompts it reads."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config.grpo import GRPO
from posttrain.config.parts import Rejection, Runtime
from posttrain.config.ppo import PPO
from posttrain.config.sizing_device import GIB, Fleet
from posttrain.config.sizing_model import ModelShape
from posttrain.config.stages import Settings

MAX_ROWS = 256
"""Completions that the engine runs together at most."""
PREFILL_TOKENS = 4096
"""Prompt tokens that it reads in one pass."""
ROLLOUT_BATCH = 64
"""Problems that rejection sampling takes at once."""
GROWTH = 1.4
"""A cache that grows by a quarter holds its old keys and values while the last new ones are filled."""


@dataclass(frozen=True, slots=True)
class SamplerSize:
    """Of one device, in bytes."""

    weights: float
    cache: float
    scratch: float
    samples_at_once: int
    devices: int = 1
    """Devices that one generator is split over."""
    problem: str = ""


def sampling_of(settings: Settings) -> GRPO | PPO | Rejection | None:
    """What says how the stage samples; None when it does not."""
    return settings if isinstance(settings, GRPO | PPO) else settings.rejection


def generator_devices(weights: float, fleet: Fleet) -> int:
    """Devices that one generator with that many bytes of weights is split over.

    All of a node's (tensor parallel, as vLLM does it), and twice as many until the weights take at most half of
    a device.
    """
    split = fleet.per_node
    while split < fleet.count and weights / split > fleet.device.memory_gib * GIB / 2:
        split = min(fleet.count, 2 * split)
    return split


def sampler_size(
    shape: ModelShape, settings: Settings, runtime: Runtime, width: int, fleet: Fleet
) -> SamplerSize:
    """The generator at its largest, split over the devices of a node where there are several."""
    # the engine holds embedding and output projection apart, tied or not
    copies = shape.parameters + (shape.embedding_parameters if shape.tied else 0)
    split = generator_devices(width * copies, fleet)
    weights = width * copies / split
    drawn = sampling_of(settings)
    if drawn is None:
        return SamplerSize(weights, 0.0, 0.0, 0, split)
    # on a CPU completions of one prompt hold it once, in blocks
    shared = (drawn.max_prompt_tokens - 1) // 32 * 32 if fleet.device.is_cpu else 0
    own = -(-(drawn.max_prompt_tokens + drawn.max_new_tokens - shared) // 32) * 32
    per_token = shape.cache_bytes(width) / split
    budget = int(runtime.sampler_cache_gib * GIB / per_token)
    if isinstance(drawn, Rejection):
        problems, samples = ROLLOUT_BATCH, ROLLOUT_BATCH * drawn.samples_per_problem
    else:
        problems, samples = drawn.prompts_per_step, drawn.completions_per_step
    each = own + shared * problems / samples
    at_once = min(MAX_ROWS, int(budget / each), samples) if budget >= own + shared else 0
    problem = ""
    if at_once < 1:
        needed = (own + shared) * per_token / GIB
        problem = (
            f"runtime.sampler_cache_gib is {runtime.sampler_cache_gib:g} and one completion may need "
            f"{needed:.2g} GiB"
        )
    prompts = max(drawn.max_prompt_tokens, min(PREFILL_TOKENS, problems * drawn.max_prompt_tokens))
    layer = 2 * 4 * shape.hidden + width * (
        2 * shape.query_width + 2 * shape.key_width + 3 * shape.intermediate
    )
    # a prompt's keys and values, and the same again as its completions will read them
    reading = prompts * (2 * per_token + layer)
    drawing = at_once * shape.vocab * width * 2
    cache = at_once * each * per_token
    scratch = max(reading, (GROWTH - 1) * cache) + drawing
    return SamplerSize(weights, cache, scratch, max(at_once, 1), split, problem)
