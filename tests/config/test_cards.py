"""The published recipes, figure by figure against the model cards and commands they come from.

Every figure is written here as its source has it, and compared with the recipe's value of that meaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config.chain import reward_model_of, start_of
from posttrain.config.load import load_recipe
from posttrain.config.plan import missing_files, plan
from posttrain.config.recipe import Recipe
from posttrain.errors import RecipeError

ROOT = Path(__file__).parents[2]
FAMILY = (
    "tulu3-8b",
    "tulu3-70b",
    "tulu3-405b",
    "tulu3.1-8b",
    "olmo2-1b",
    "olmo2-7b",
    "olmo2-13b",
    "olmo2-13b-rlvr",
)


def recipe(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.yaml")


def settings(name: str, kind: str, place: int = 0) -> Any:
    """The settings of a recipe's stage of one kind; `place` counts among those of the kind."""
    return [stage.settings for stage in recipe(name).stages if stage.kind == kind][place]


def hubs(sources: Any) -> list[tuple[str, str, float]]:
    return [(source.hub, source.split, source.amount) for source in sources]


def test_tulu_3_1_as_its_card_says() -> None:
    """allenai/Llama-3.1-Tulu-3.1-8B, section "Hyperparamters", line by line."""
    grpo = settings("tulu3.1-8b", "grpo")
    card = {
        "Learning Rate: 5 x 10^-7": (grpo.learning_rate, 0.0000005),
        "Discount Factor (gamma): 1.0": (hasattr(grpo, "gamma"), False),  # GRPO has one reward a completion
        "Mini-batches (N_mb): 2": (grpo.mini_batches, 2),
        "PPO-style Update Iteration (K): 1": (grpo.inner_epochs, 1),
        "Clipping Coefficient (epsilon): 0.2": ((grpo.clip_low, grpo.clip_high), (0.2, 0.2)),
        "Gradient Norm Threshold: 1.0": (grpo.max_grad_norm, 1.0),
        "Learning Rate Schedule: Constant": (grpo.schedule, "constant"),
        "Generation Temperature: 1.0": (grpo.temperature, 1.0),
        "Number of Samples per Prompt: 16": (grpo.samples_per_prompt, 16),
        "Number of Unique Prompts per Training Iteration: 48": (grpo.prompts_per_step, 48),
        "Batch Size (effective): 48 * 16 = 768": (grpo.completions_per_step, 768),
        "Max Prompt Token Length: 2,048": (grpo.max_prompt_tokens, 2048),
        "Response Length: 2,048": (grpo.max_new_tokens, 2048),
        "Penalty Reward Value without an EOS Token: 0.0": (grpo.no_stop_score, 0.0),
        "Total Episodes: 10,000,000": (grpo.total_episodes, 10_000_000),
        "KL penalty coefficient (beta): 0.01": (grpo.kl_coefficient, 0.01),
        "Warm up ratio (omega): 0.0": (grpo.warmup_fraction, 0.0),
    }
    assert {line: found for line, (found, _) in card.items()} == {
        line: wanted for line, (_, wanted) in card.items()
    }


def test_tulu_3_1_as_the_command_on_its_card_says() -> None:
    whole, grpo = recipe("tulu3.1-8b"), settings("tulu3.1-8b", "grpo")
    assert whole.model == "allenai/Llama-3.1-Tulu-3-8B-DPO"
    assert (whole.chat_template, whole.seed) == ("tulu", 1)
    assert hubs(grpo.problems) == [("allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "train", 1.0)]
    assert (grpo.kl_estimator, grpo.kl_in) == ("k3", "loss")
    assert (grpo.rows_per_micro_batch, grpo.save_every_steps) == (2, 40)
    assert whole.runtime.gradient_checkpointing
    # what the command leaves out is as in the script it runs
    assert (grpo.generate_ahead, grpo.old_logprobs, grpo.importance_cap) == (1, "learner", None)
    assert (grpo.loss_denominator, grpo.std_ddof, grpo.weight_decay) == ("micro_batch_mean", 1, 0.01)
    assert (grpo.advantage, grpo.zero_signal, grpo.reward_scale) == ("group_std", "keep", 10.0)


def test_tulu_3_1_sizes_that_follow() -> None:
    """768 responses a step in two updates of 384; step 1,920 is episode 1,474,560; 13,020 steps in all."""
    grpo = settings("tulu3.1-8b", "grpo")
    assert (grpo.completions_per_step, grpo.rows_per_update, grpo.updates_per_step) == (768, 384, 2)
    assert 1920 * grpo.completions_per_step == 1_474_560
    assert (grpo.num_steps, grpo.num_updates) == (13_020, 26_040)
    assert 1920 % grpo.save_every_steps == 0


def test_tulu_3_1_is_measured_and_picked_as_its_card_says() -> None:
    """30 evaluations on 16 rows of the training data; step 1,920, episode 1,474,560, is the published checkpoint."""
    stage, measure = recipe("tulu3.1-8b").stages[0], recipe("tulu3.1-8b").stages[0].measure
    assert measure is not None and measure.evaluation is not None
    steps = measure.steps(stage.settings.num_steps)
    assert (len(steps), steps[0], steps[-1]) == (30, 13_020 // 30, 13_020)
    assert hubs([measure.evaluation.problems]) == [
        ("allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "train", 16)
    ]
    assert (measure.evaluation.max_new_tokens, measure.evaluation.temperature) == (2048, 1.0)
    assert measure.keep * stage.settings.completions_per_step == 1_474_560
    assert measure.keep % stage.settings.save_every_steps == 0


@pytest.mark.parametrize(("name", "stage"), [("olmo2-13b", 3), ("olmo2-13b-rlvr", 0)])
def test_olmo_2_13b_step_360_can_be_the_result_with_the_batch_of_the_scripts(name: str, stage: int) -> None:
    """Not with the card's, which has 195 steps; the overrides are those that the recipe's comment gives."""
    path = ROOT / "recipes" / f"{name}.yaml"
    overrides = [f"stages.{stage}.ppo.prompts_per_step=248", f"stages.{stage}.measure.keep=360"]
    assert " ".join(overrides) in path.read_text()
    picked = load_recipe(path, overrides).stages[stage]
    assert picked.measure is not None and picked.measure.keep == 360 <= picked.settings.num_steps == 403
    with pytest.raises(RecipeError, match="keep is 360, and the stage has only 195 steps"):
        load_recipe(path, overrides[1:])


def test_olmo_2_13b_as_its_card_says() -> None:
    """allenai/OLMo-2-1124-13B-Instruct, section "Hyperparameters", line by line, in both recipes that have it."""
    for name in ("olmo2-13b", "olmo2-13b-rlvr"):
        ppo = settings(name, "ppo")
        card = {
            "Learning Rate: 4 x 10^-7": (ppo.learning_rate, 0.0000004),
            "Discount Factor (gamma): 1.0": (ppo.gamma, 1.0),
            "General Advantage Estimation (lambda): 0.95": (ppo.gae_lambda, 0.95),
            "Mini-batches (N_mb): 1": (ppo.mini_batches, 1),
            "PPO Update Iterations (K): 4": (ppo.inner_epochs, 4),
            "PPO's Clipping Coefficient (epsilon): 0.2": (ppo.clip, 0.2),
            "Value Function Coefficient (c1): 0.1": (ppo.value_coefficient, 0.1),
            "Gradient Norm Threshold: 1.0": (ppo.max_grad_norm, 1.0),
            "Learning Rate Schedule: Linear": (ppo.schedule, "linear"),
            "Generation Temperature: 1.0": (ppo.temperature, 1.0),
            "Batch Size (effective): 512": (ppo.completions_per_step, 512),
            "Max Prompt Token Length: 2,048": (ppo.max_prompt_tokens, 2048),
            "Penalty Reward Value without an EOS Token: -10.0": (ppo.no_stop_score, -10.0),
            "Response Length: 2,048": (ppo.max_new_tokens, 2048),
            "Total Episodes: 100,000": (ppo.total_episodes, 100_000),
            "KL penalty coefficient (beta): 0.03": (ppo.kl_coefficient, 0.03),
            "Warm up ratio (omega): 0.0": (ppo.warmup_fraction, 0.0),
        }
        assert {line: found for line, (found, _) in card.items()} == {
            line: wanted for line, (_, wanted) in card.items()
        }
        assert recipe(name).chat_template == "tulu_bos"  # "<|endoftext|><|user|>..." on the card


def test_olmo_2_13b_starts_where_its_card_says() -> None:
    """Alone, from the published DPO model; in the chain, from the stage that makes that model."""
    assert recipe("olmo2-13b-rlvr").model == "allenai/OLMo-2-1124-13B-DPO"
    chain = recipe("olmo2-13b").stages
    assert start_of(chain, 3) == 1 and chain[1].kind == "dpo"
    alone = settings("olmo2-13b-rlvr", "ppo").model_copy(update={"reward_model": None})
    assert alone == settings("olmo2-13b", "ppo")


def test_olmo_2_13b_step_360_is_not_one_of_the_cards_own() -> None:
    """100,000 episodes are 195 steps of 512, and 403 of the scripts' 31 x 8 = 248, where 360 is saved."""
    ppo = settings("olmo2-13b", "ppo")
    assert (ppo.num_steps, ppo.num_updates) == (195, 780)
    assert 100_000 // (31 * 8) == 403 and 360 % ppo.save_every_steps == 0
    assert "195" in (ROOT / "recipes" / "olmo2-13b.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "rate", "rows", "data"),
    [
        ("tulu3-8b", 5e-6, 64 * 1 * 2, "allenai/tulu-3-sft-mixture"),
        ("tulu3-70b", 2e-6, 64 * 1 * 2, "allenai/tulu-3-sft-mixture"),
        ("tulu3-405b", 2e-6, 256, "allenai/tulu-3-sft-mixture"),
        ("olmo2-1b", 3e-5, 8 * 2 * 8, "allenai/tulu-3-sft-olmo-2-mixture-0225"),
        ("olmo2-7b", 1e-5, 32 * 1 * 4, "allenai/tulu-3-sft-olmo-2-mixture"),
        ("olmo2-13b", 5e-6, 64, "allenai/tulu-3-sft-olmo-2-mixture"),
    ],
)
def test_sft_as_the_commands_say(name: str, rate: float, rows: int, data: str) -> None:
    sft = settings(name, "sft")
    assert (sft.learning_rate, sft.batch_rows, hubs(sft.data)) == (rate, rows, [(data, "train", 1.0)])
    assert (sft.epochs, sft.max_tokens, sft.loss_denominator) == (2, 4096, "sum")
    assert (sft.schedule, sft.warmup_fraction, sft.weight_decay) == ("linear", 0.03, 0.0)
    assert sft.max_grad_norm == 1.0
    assert start_of(recipe(name).stages, 0) is None


@pytest.mark.parametrize(
    ("name", "rate", "pairs", "data"),
    [
        ("tulu3-8b", 5e-7, 8 * 1 * 16, "allenai/llama-3.1-tulu-3-8b-preference-mixture"),
        ("tulu3-70b", 2e-7, 64 * 1 * 2, "allenai/llama-3.1-tulu-3-70b-preference-mixture"),
        ("tulu3-405b", 2e-7, 256 * 1 * 1, "allenai/llama-3.1-tulu-3-405b-preference-mixture"),
        ("olmo2-1b", 2.5e-6, 8 * 8 * 2, "allenai/olmo-2-0425-1b-preference-mix"),
        ("olmo2-7b", 8e-7, 32 * 1 * 4, "allenai/olmo-2-1124-7b-preference-mix"),
        ("olmo2-13b", 8e-7, 32 * 1 * 4, "allenai/olmo-2-1124-13b-preference-mix"),
    ],
)
def test_dpo_as_the_commands_say(name: str, rate: float, pairs: int, data: str) -> None:
    dpo = settings(name, "dpo")
    assert (dpo.learning_rate, dpo.batch_pairs, hubs(dpo.data)) == (rate, pairs, [(data, "train", 1.0)])
    assert (dpo.loss, dpo.beta, dpo.epochs, dpo.max_tokens) == ("dpo_norm", 5.0, 1, 2048)
    assert (dpo.schedule, dpo.warmup_fraction, dpo.weight_decay) == ("linear", 0.1, 0.0)
    assert dpo.max_grad_norm == 1.0
    assert start_of(recipe(name).stages, 1) == 0


@pytest.mark.parametrize("name", ["tulu3-8b", "olmo2-7b", "olmo2-13b"])
def test_reward_models_as_the_commands_say(name: str) -> None:
    """8 x 1 x 32, 16 x 1 x 16 and 32 x 1 x 8 pairs, from the SFT model; the largest Tülus use the 8B one."""
    rm, stages = settings(name, "reward_model"), recipe(name).stages
    assert (rm.learning_rate, rm.batch_pairs, rm.epochs, rm.max_tokens) == (3e-6, 256, 1, 2048)
    assert (rm.schedule, rm.warmup_fraction, rm.weight_decay, rm.max_grad_norm) == ("linear", 0.0, 0.01, 1.0)
    assert hubs(rm.data) == hubs(settings(name, "dpo").data)
    assert hubs(rm.heldout) == [("allenai/ultrafeedback_binarized_cleaned", "test_prefs", 100)]
    assert (start_of(stages, 2), reward_model_of(stages, 3), start_of(stages, 3)) == (0, 2, 1)


@pytest.mark.parametrize(
    ("name", "rate", "beta", "batch", "tokens", "episodes", "warmup", "save", "seed"),
    [
        ("tulu3-8b", 3e-7, 0.05, 7 * 32, 2048, 10_000_000, 0.0, 100, 3),
        ("tulu3-70b", 1e-7, 0.07, 40 * 16, 2048, 400_000, 0.1, 40, 8),
        ("tulu3-405b", 1e-7, 0.05, 232 * 8, 1024, 400_000, 0.0, 25, 3),
        ("olmo2-7b", 3e-7, 0.05, 31 * 8, 2048, 200_000, 0.0, 60, 1),
    ],
)
def test_ppo_as_the_commands_say(
    name: str,
    rate: float,
    beta: float,
    batch: int,
    tokens: int,
    episodes: int,
    warmup: float,
    save: int,
    seed: int,
) -> None:
    ppo, stages = settings(name, "ppo"), recipe(name).stages
    assert (ppo.learning_rate, ppo.kl_coefficient, ppo.completions_per_step) == (rate, beta, batch)
    assert (ppo.max_prompt_tokens, ppo.max_new_tokens, ppo.total_episodes) == (2048, tokens, episodes)
    assert (ppo.schedule, ppo.warmup_fraction, ppo.save_every_steps) == ("linear", warmup, save)
    assert (ppo.inner_epochs, ppo.mini_batches, ppo.no_stop_score, ppo.temperature) == (4, 1, -10.0, 1.0)
    assert (ppo.gamma, ppo.gae_lambda, ppo.clip, ppo.value_clip) == (1.0, 0.95, 0.2, 0.2)
    assert (ppo.value_coefficient, ppo.reward_scale, ppo.reward_model_multiplier) == (0.1, 10.0, 0.0)
    assert (ppo.kl_estimator, ppo.weight_decay, ppo.max_grad_norm) == ("k1", 0.01, 1.0)
    assert recipe(name).seed == seed
    own = reward_model_of(stages, len(stages) - 1)
    assert own == ("allenai/Llama-3.1-Tulu-3-8B-RM" if name in ("tulu3-70b", "tulu3-405b") else 2)


def test_olmo_2_1b_as_its_commands_say() -> None:
    first, second = (settings("olmo2-1b", "grpo", place) for place in (0, 1))
    assert first.model_copy(update={"problems": second.problems}) == second
    assert hubs(first.problems) == [("allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "train", 1.0)]
    assert hubs(second.problems) == [("allenai/RLVR-MATH", "train", 1.0)]
    assert (first.learning_rate, first.kl_coefficient, first.kl_estimator) == (5e-7, 0.01, "k3")
    assert (first.prompts_per_step, first.samples_per_prompt, first.mini_batches) == (12 * 4, 16, 2)
    assert (first.total_episodes, first.no_stop_score, first.schedule) == (2_000_000, 0.0, "constant")
    assert [stage.label for stage in recipe("olmo2-1b").stages] == ["sft", "dpo", "rlvr1", "rlvr2"]


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_loads_checks_and_plans(name: str) -> None:
    loaded = recipe(name)
    assert not loaded.warnings and missing_files(loaded) == []
    planned = plan(loaded)
    assert [one.kind for one in planned] == [stage.kind for stage in loaded.stages]
    last = planned[-1]
    assert last.steps and last.updates and last.sampled_tokens and last.trained_tokens


@pytest.mark.parametrize("name", FAMILY)
def test_every_figure_of_a_stage_names_its_source(name: str) -> None:
    """A line of a stage that sets a value has a comment, but for the stage that repeats another."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    stages = text.split("\nstages:\n")[1].split("  - name: rlvr2\n")[0].splitlines()
    bare = [
        line
        for line, before in zip(stages[1:], stages, strict=False)
        if ":" in line and "#" not in line and "#" not in before and not line.rstrip().endswith(":")
    ]
    assert bare in ([], ["  - name: rlvr1"])
