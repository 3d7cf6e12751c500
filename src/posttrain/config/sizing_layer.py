"""Bytes of one layer's pass and of the output projection's: what `model/decoder.py` keeps alive.

Legend: H hidden, A query width, K key width, I intermediate, V vocabulary, w bytes of the compute dtype.
"""

from __future__ import annotations

from posttrain.config.lora import LoRA
from posttrain.config.sizing_batch import MicroBatch
from posttrain.config.sizing_device import Fleet
from posttrain.config.sizing_model import ModelShape

CHUNK_ROWS = 512
"""Positions whose logits exist at once (`model/logprobs.py`)."""
BLOCK_ROWS = 4096
"""Rows of the output projection whose gradient is computed at once (the same)."""


def layer_bytes(
    shape: ModelShape, lora: LoRA | None, width: int, *, on_cpu: bool, recomputed: bool = False
) -> float:
    """Of one token in one layer, kept from the forward to the backward pass.

    Queries, keys, values and what attention gives always are, and both halves of the gated product. Other inputs of
    projections are made again (`model/remade.py`), but for those of OLMo 2's blocks, which are the residual stream
    itself; in a layer that is `recomputed` as a whole all are kept where a weight or an adapter learns.
    """
    hidden, query, key, wide = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    learns = set(shape.projections) if lora is None else set(lora.targets)
    inputs = 0
    if recomputed or shape.family == "olmo2":
        readers = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}
        inputs += hidden * sum(bool(learns & names) for names in readers)
    if recomputed:
        inputs += wide * ("down_proj" in learns)
    attention = 2 * query + 2 * key + (0 if on_cpu else query)
    narrow = inputs + attention + 2 * wide
    normalisers = 4 * shape.num_heads
    if shape.family == "olmo2":
        # the norms follow the blocks and read them in the compute dtype; queries and keys have norms too
        return width * (narrow + 2 * hidden + query + key) + normalisers
    return width * narrow + 2 * 4 * hidden + normalisers


def hidden_bytes(shape: ModelShape, batch: MicroBatch, width: int, *, scores: bool) -> float:
    """After the last layer: the residual stream unpacked, normalised, and what a head reads of it."""
    if scores:
        return batch.tokens * shape.hidden * (4 + width + 4)
    return batch.tokens * shape.hidden * (4 + width) + batch.targets * shape.hidden * width


def projection_bytes(
    shape: ModelShape, batch: MicroBatch, width: int, *, trained: bool, on_cpu: bool
) -> float:
    """The output projection at its largest: a chunk's logits, the weight cast, and of its gradient the block that comes
    next, in bfloat16 and widened to be added.
    """
    chunk = min(CHUNK_ROWS, batch.targets) * shape.vocab
    narrow = width < 4
    cast = width * shape.embedding_parameters if narrow and trained else 0
    # the CPU's kernels read logits as they are, and leave the gradient in their place; elsewhere there are float32
    # logits too, and their exponentials while they are summed
    logits = width * chunk if on_cpu else (width + 2 * 4) * chunk
    block = (width + 4) * min(BLOCK_ROWS, shape.vocab) * shape.hidden if narrow and trained else 0
    return float(cast + logits + block)


def layer_scratch(shape: ModelShape, lora: LoRA | None, batch: MicroBatch, width: int, fleet: Fleet) -> float:
    """The largest temporaries of one layer's backward pass."""
    hidden, query, key, wide = shape.hidden, shape.query_width, shape.key_width, shape.intermediate
    gated = width * (4 * wide + hidden)
    attended = width * 9 * query + 8 * key
    if fleet.device.is_cpu:
        # the CPU's kernels: gradients, and in float32 those of keys and what each segment gives to them
        attended = width * (3 * query + 2 * key) + 16 * key
    weight = (4 + width if lora is None else 8 + width) * shape.largest_matrix
    return float(batch.packed_tokens * (2 * 4 * hidden + max(gated, attended)) + weight)
