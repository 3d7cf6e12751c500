"""SFT, reward model, PPO, GRPO on the 135M model through the shipped recipe: PPO and GRPO each raise SFT's score."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

RECIPE = Path(__file__).parents[2] / "recipes" / "chain.yaml"


@pytest.mark.slow
def test_ppo_and_grpo_raise_the_held_out_score(smollm2_dir, tmp_path, steady_products):
    """Paired over the same held-out requests and seeds, both are significantly better than SFT; the first update's
    policy is the sampler's; the reward model loads as a classifier; the report draws both learning curves."""
    from posttrain.config.load import load_recipe
    from posttrain.evaluation.statistics import by_problem, paired_difference
    from posttrain.report.record import read_run
    from posttrain.train.metrics import read_metrics
    from posttrain.train.run import run

    # all cores, where the toy tests beside this one take one thread
    overrides = [f"output={tmp_path / 'run'}", f"runtime.threads={os.cpu_count()}"]
    recipe = load_recipe(RECIPE, overrides)
    folder = run(recipe, console=Console(file=io.StringIO()))

    means = {
        stage.name: by_problem([s.problem_id for s in stage.samples], [s.value for s in stage.samples])
        for stage in read_run(folder).stages
        if stage.samples
    }
    for name in ("03-ppo", "04-grpo"):
        gain = paired_difference(means["01-sft"], means[name])
        assert gain.is_better, (name, gain)
        (first, *_) = read_metrics(folder / "stages" / name / "metrics.jsonl")
        if steady_products:
            assert first["sampling/logprob_difference_max_nats"] < 1e-2
        assert first["sampling/logprob_difference_mean_nats"] < 5e-2
    config = json.loads((folder / "stages" / "02-reward_model" / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    page = (folder / "report.html").read_text()
    assert page.count("KL to the reference") >= 2 and "Explained variance" in page
