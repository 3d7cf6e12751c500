"""What a recipe needs before it is run: parameters, bytes, arithmetic, and what would make it fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config.dpo import DPO
from posttrain.config.grpo import GRPO
from posttrain.config.load import load_recipe
from posttrain.config.lora import LoRA
from posttrain.config.parts import Runtime
from posttrain.config.ppo import PPO
from posttrain.config.reward_model import RewardModel
from posttrain.config.sft import SFT
from posttrain.config.sizing import fits, size_recipe, smallest_change
from posttrain.config.sizing_batch import Bundle, MicroBatch, largest_micro_batch
from posttrain.config.sizing_device import DEVICES, Device, Fleet, parse_fleet
from posttrain.config.sizing_layer import layer_bytes
from posttrain.config.sizing_memory import PARTS, Load, stage_memory
from posttrain.config.sizing_model import SHAPES, ModelShape, read_shape, shape_of
from posttrain.config.sizing_sampler import sampler_size
from posttrain.config.sizing_time import forward_flops, step_time
from posttrain.errors import RecipeError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SOURCE: Any = ({"path": "rows.jsonl"},)

PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMo-2-1124-13B": 13_716_198_400,
    "allenai/OLMo-2-0325-32B": 32_234_279_936,
}
"""Tensor totals that the hub shows for the safetensors files of each model."""

SMALL = ModelShape(8, 2, 2, 1, 16, 32, 4)
BARE = Device("bare", 1.0, 1.0, 1.0, process_gib=0.0, slack=0.0)


def load(settings: Any, *, shape: ModelShape = SMALL, lora: LoRA | None = None, **runtime: Any) -> Load:
    fleet = runtime.pop("fleet", Fleet(BARE))
    values = {"compute_dtype": "bfloat16", "max_tokens_per_micro_batch": 4} | runtime
    return Load(shape, settings, Runtime(**values), fleet, lora)


def grpo(**values: Any) -> GRPO:
    sizes = {
        "problems": SOURCE,
        "steps": 2,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "mini_batches": 1,
    }
    return GRPO(**sizes | {"max_prompt_tokens": 10, "max_new_tokens": 6} | values)


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_published(model: str) -> None:
    assert shape_of(model).parameters == PUBLISHED[model]


@pytest.mark.parametrize("key", SHAPES)
def test_shapes_give_the_models_that_transformers_builds(key: str) -> None:
    """An independent count: the library's own modules, without memory."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Olmo2Config

    shape = replace(SHAPES[key], num_layers=2)
    config = (Olmo2Config if shape.family == "olmo2" else LlamaConfig)(
        hidden_size=shape.hidden,
        num_hidden_layers=2,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
    )
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(p.numel() for p in module.parameters())


def test_a_model_is_known_by_built_in_name_hub_id_folder_or_config(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 32,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of(str(tmp_path)) == shape_of("a/b", tmp_path / "config.json") == SMALL
    assert shape_of("smollm2-135m-instruct") == shape_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    # the padding token that the Tülu models have beside Llama's vocabulary, and its row in both matrices
    tulu, llama = shape_of("allenai/Llama-3.1-Tulu-3-8B-DPO"), shape_of("meta-llama/Llama-3.1-8B-Instruct")
    assert tulu.parameters - llama.parameters == 8 * 4096 * 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "type None"),
        ('{"model_type": "gpt2"}', "'gpt2'"),
        ('{"model_type": "llama"}', "lacks a size"),
        ("no", "cannot be read"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says):
        read_shape(path)
    with pytest.raises(RecipeError, match="--model-config"):
        shape_of("somebody/else")


def test_the_largest_micro_batch() -> None:
    """By hand. SFT fills the budget; a pair of 2 x 7 is one unit; a row beyond the budget stands alone."""
    sft = SFT(data=SOURCE, max_tokens=6, batch_rows=4)
    assert largest_micro_batch(sft, 15) == MicroBatch((Bundle(0, 6, 2), Bundle(0, 3)), 2)
    assert largest_micro_batch(sft, 4) == MicroBatch((Bundle(0, 6, 1),), 4)
    assert largest_micro_batch(sft, 1000).packed_tokens == 4 * 6
    three = sft.model_copy(update={"rows_per_micro_batch": 3})
    assert largest_micro_batch(three, 4) == MicroBatch((Bundle(0, 6, 3),), 2)
    for pairs in (
        DPO(data=SOURCE, max_tokens=7, batch_pairs=3),
        RewardModel(data=SOURCE, max_tokens=7, batch_pairs=3),
    ):
        assert largest_micro_batch(pairs, 5) == MicroBatch((Bundle(0, 7, 2),), 3)
        assert largest_micro_batch(pairs, 1000).packed_tokens == 3 * 14


def test_completions_of_a_prompt_share_it() -> None:
    """4 x 4 rows of 10 + 6: a group is 10 + 4 * 6 = 34 to compute; 40 leaves 6 for a row cut short."""
    batch = largest_micro_batch(grpo(), 40)
    assert batch.bundles == (Bundle(10, 6, 4), Bundle(0, 6))
    assert (batch.packed_tokens, batch.tokens, batch.targets) == (40, 4 * 16 + 6, 4 * 6 + 5)
    assert batch.per_update == 7  # 16 rows of 16 that share nothing, 40 at a time
    assert largest_micro_batch(grpo(), 1).bundles == (Bundle(10, 6, 1),)
    apart = grpo(rows_per_micro_batch=2)
    assert largest_micro_batch(apart, 1000) == MicroBatch((Bundle(10, 6), Bundle(10, 6)), 8)


def test_memory_of_a_small_model_by_hand() -> None:
    """H 8, 2 layers, queries 8, keys 4, I 16, V 32; 4 tokens, bfloat16, two micro-batches an update.

    Parameters: matrices 64 + 32 + 32 + 64 + 3 * 128 = 576, a layer 576 + 16, all 2 * 592 + 8 + 2 * 256 = 1704.
    A token in a layer keeps queries and twice the output 24, keys and values 8, gate and up 32: 64 numbers of 2
    bytes; two residuals of 32 bytes; 2 normalisers of 4: 200 bytes. The largest matrix is 8 * 16.
    After the layers 4 * 8 * (4 + 2), and 3 targets * 8 * 2.
    Projection: cast 512, logits of 3 positions 3 * 32 * (2 + 4 + 4), and all of its gradient, being less than a
        block, in bfloat16 and widened 32 * 8 * (2 + 4).
    """
    memory = stage_memory(load(SFT(data=SOURCE, max_tokens=4, batch_rows=2)))
    assert memory.peak.name == "learning"
    assert memory.peak.parts == {
        "weights": 4 * 1704,
        "moments": 8 * 1704,
        "gradients": 4 * 1704,
        "weights cast": 2 * 128,
        "activations": 2 * 4 * 200 + 192 + 48,
        "logits": 512 + 960 + 1536,
    }


def test_adapters_are_trained_on_frozen_weights_by_hand() -> None:
    """Rank 2 on q and v: 2 layers * 2 * ((8 + 8) + (8 + 4)) = 112 parameters that learn."""
    lora = LoRA(rank=2, targets=["q_proj", "v_proj"])  # type: ignore[arg-type]
    parts = stage_memory(load(SFT(data=SOURCE, max_tokens=4, batch_rows=2), lora=lora)).peak.parts
    assert (parts["weights"], parts["moments"], parts["gradients"]) == (2 * 1704 + 448, 896, 448)
    assert "weights cast" not in parts


def test_inputs_that_a_layer_keeps_by_hand() -> None:
    """Llama's are made again: none, unless the layer is, and then those that learn: 8 + 8 + 16; q and v read 8."""
    lora = LoRA(rank=2, targets=["q_proj", "v_proj"])  # type: ignore[arg-type]

    def inputs(shape: ModelShape, given: LoRA | None, recomputed: bool) -> float:
        none_learn = LoRA(rank=2, targets=["o_proj"])  # type: ignore[arg-type]
        least = layer_bytes(shape, none_learn, 2, on_cpu=False, recomputed=recomputed)
        return (layer_bytes(shape, given, 2, on_cpu=False, recomputed=recomputed) - least) / 2

    assert (inputs(SMALL, None, False), inputs(SMALL, lora, False)) == (0, 0)
    assert (inputs(SMALL, None, True), inputs(SMALL, lora, True)) == (8 + 8 + 16, 8)
    other = replace(SMALL, family="olmo2")  # its blocks read the residual stream, rounded
    assert (inputs(other, None, False), inputs(other, lora, False)) == (8 + 8, 8)


def test_shards_and_models_beside_the_policy_by_hand() -> None:
    def learning(given: Load) -> Any:
        phase = stage_memory(given).phases[0]
        assert phase.name == "learning"
        return phase.parts

    one, four = (learning(load(grpo(), fleet=fleet)) for fleet in (Fleet(BARE), Fleet(BARE, 2, 2)))
    for part in ("weights", "moments", "gradients", "reference"):
        assert four[part] == one[part] / 4
    assert one["reference"] == 2 * 1704
    assert "reference" not in learning(load(grpo(), lora=LoRA(rank=2)))  # the policy, its adapters off
    ppo = PPO(problems=SOURCE, prompts_per_step=4, value_start="policy", total_episodes=8, mini_batches=1)
    # a value model has no output projection but a head of 8: 1704 - 256 + 8, in float32 four times
    assert learning(load(ppo))["value model"] == 16 * (1704 - 256 + 8)


def test_the_cache_holds_what_runs_at_once() -> None:
    """A token's keys and values: 2 * 2 layers * 4 * 2 bytes = 32; 16 completions of 16, rounded up to 32."""
    size = sampler_size(SMALL, grpo(), Runtime(), 2, Fleet(BARE))
    assert (size.cache, size.samples_at_once) == (16 * 32 * 32, 16)
    small = sampler_size(SMALL, grpo(), Runtime(sampler_cache_gib=5 * 32 * 32 / 2**30), 2, Fleet(BARE))
    assert (small.cache, small.samples_at_once) == (5 * 32 * 32, 5)
    none = sampler_size(SMALL, grpo(), Runtime(sampler_cache_gib=1e-9), 2, Fleet(BARE))
    assert "sampler_cache_gib is 1e-09" in none.problem


def test_on_a_cpu_completions_of_one_prompt_hold_it_once() -> None:
    """Of 100 prompt tokens 96 are whole blocks; 4 and 60 new ones are 64. 4 prompts and 16 completions hold 1,408."""
    drawn, cpu = grpo(max_prompt_tokens=100, max_new_tokens=60), Fleet(replace(BARE, is_cpu=True))
    size = sampler_size(SMALL, drawn, Runtime(), 2, cpu)
    prompts, samples = drawn.prompts_per_step, drawn.completions_per_step
    assert (size.cache, size.samples_at_once) == ((prompts * 96 + samples * 64) * 32, samples)
    # one completion needs all of its own prompt
    for tokens, problem in ((160, False), (159, True)):
        found = sampler_size(SMALL, drawn, Runtime(sampler_cache_gib=tokens * 32 / 2**30), 2, cpu)
        assert bool(found.problem) == problem


def test_arithmetic_by_hand() -> None:
    """Two for each of 2 * 576 + 256 weights; scores and values: 2 * 2 * (8 * 10) / 2 twice, a layer 2 * 8 * 10."""
    assert forward_flops(SMALL, 10) == 2 * (2 * 576 + 256) + 2 * (2 * 8 * 10)
    sft = SFT(data=SOURCE, max_tokens=10, batch_rows=3)
    assert step_time(load(sft)).flops == 3 * 30 * forward_flops(SMALL, 10)
    assert step_time(load(sft, gradient_checkpointing=True)).flops == 4 * 30 * forward_flops(SMALL, 10)
    assert step_time(load(sft), mean_tokens=5).flops == step_time(load(sft)).flops / 2
    # the bare device reaches 0.4 of its 1e12 a second
    assert step_time(load(sft)).seconds == pytest.approx(step_time(load(sft)).flops / 0.4e12)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40_000),
    more=st.integers(1, 20_000),
    devices=st.sampled_from([1, 2, 8]),
    lora=st.booleans(),
    recompute=st.booleans(),
    kind=st.sampled_from(["sft", "dpo", "reward_model", "grpo", "ppo"]),
)
def test_more_takes_more(
    tokens: int, more: int, devices: int, lora: bool, recompute: bool, kind: str
) -> None:
    """More tokens never take less; more devices and recomputing never take more."""
    stage: Any = {
        "sft": SFT(data=SOURCE, max_tokens=512),
        "dpo": DPO(data=SOURCE, max_tokens=512),
        "reward_model": RewardModel(data=SOURCE, max_tokens=512),
        "grpo": GRPO(problems=SOURCE, steps=1, max_prompt_tokens=256, max_new_tokens=256),
        "ppo": PPO(problems=SOURCE, max_prompt_tokens=256, max_new_tokens=256, value_start="policy"),
    }[kind]
    h100 = DEVICES["h100"]

    def peak(size: int, count: int, recomputes: bool) -> float:
        runtime = {"max_tokens_per_micro_batch": size, "gradient_checkpointing": recomputes}
        adapters = LoRA() if lora else None
        shape = shape_of("meta-llama/Llama-3.1-8B")
        memory = stage_memory(load(stage, shape=shape, lora=adapters, fleet=Fleet(h100, count), **runtime))
        assert set(memory.peak.parts) <= set(PARTS)
        return memory.peak.gib

    here = peak(tokens, devices, recompute)
    assert peak(tokens + more, devices, recompute) >= here
    if devices > 1:
        assert peak(tokens, 2 * devices, recompute) <= here
    assert peak(tokens, devices, True) <= peak(tokens, devices, False)


def test_the_smallest_change_is_the_least_painful_one_that_helps() -> None:
    """Memory between two known peaks decides which change is enough."""
    sft = SFT(data=SOURCE, max_tokens=64, batch_rows=64)

    def on(gib: float, **runtime: Any) -> Load:
        values = {"max_tokens_per_micro_batch": 512} | runtime
        shape = shape_of("HuggingFaceTB/SmolLM2-135M")
        return load(sft, shape=shape, fleet=Fleet(replace(BARE, memory_gib=gib)), **values)

    def peak(given: Load) -> float:
        return stage_memory(given).peak.gib

    halved = peak(on(1, max_tokens_per_micro_batch=256))
    change = smallest_change(on(halved))
    assert change is not None and change.overrides == ("runtime.max_tokens_per_micro_batch=256",)
    one_row = peak(on(1, max_tokens_per_micro_batch=64))
    recomputed = peak(on(1, max_tokens_per_micro_batch=64, gradient_checkpointing=True))
    assert recomputed < one_row
    change = smallest_change(on((one_row + recomputed) / 2))
    assert change is not None and "runtime.gradient_checkpointing=true" in change.overrides
    change = smallest_change(on(recomputed * 0.7))
    assert change is not None and "lora.rank=16" in change.overrides and not change.is_more_devices
    assert smallest_change(on(1e-9)) is None


def test_more_devices_are_the_last_resort() -> None:
    """Two nodes' worth of 70B: adapters do not fit on one device, so devices are added until something does."""
    one = Fleet(DEVICES["h100"])
    big = load(SFT(data=SOURCE), shape=shape_of("meta-llama/Llama-3.1-70B"), fleet=one)
    change = smallest_change(big)
    assert change is not None and change.is_more_devices and change.fleet.count > 1
    assert f"--devices {change.fleet.per_node}xH100" in change.sentence
    enough = replace(
        big,
        fleet=change.fleet,
        lora=LoRA() if "lora.rank=16" in change.overrides else None,
        runtime=big.runtime.model_copy(
            update={"gradient_checkpointing": "runtime.gradient_checkpointing=true" in change.overrides}
        ),
    )
    assert fits(stage_memory(enough), enough.fleet)


@pytest.mark.parametrize("devices", ["cpu", "8xH100"])
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_sized(path: Path, devices: str) -> None:
    recipe = load_recipe(path)
    sizes = size_recipe(recipe, parse_fleet(devices, 1), rows=1000)
    assert len(sizes) == len(recipe.stages)
    for size in sizes:
        assert size.memory.peak.gib > 0 and size.step.seconds > 0 and size.seconds is not None
        assert size.fits or size.change is None or size.change.peak_gib <= size.change.fleet.device.memory_gib


def test_fleets_are_named_as_users_write_them() -> None:
    fleet = parse_fleet("8xh100", 2)
    assert (fleet.count, fleet.label, fleet.device.memory_gib) == (16, "16xH100", 79.1)
    assert parse_fleet("A100-40GB").count == 1
    assert parse_fleet("cpu").device.memory_gib > 0
    for text, says in (
        ("8xH10", "did you mean H100"),
        ("0xH100", "a count"),
        ("eight", "there are"),
        ("2xcpu", "CPU"),
    ):
        with pytest.raises(RecipeError, match=says):
            parse_fleet(text)
