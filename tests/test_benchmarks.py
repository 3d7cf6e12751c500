"""The benchmarks' own code at toy size: every script runs, measures real work and writes what its readers expect."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from posttrain.model.load import load_model, load_tokenizer
from posttrain.model.tiny import tiny_llama

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(tmp_path, tiny_llama_dir, posttrain_data):
    """Runs `benchmarks/NAME.py` on the tiny model without peers; returns its results file's content."""

    def run(name: str, *arguments: str, model: Path = tiny_llama_dir) -> dict:
        environment = os.environ | {
            "POSTTRAIN_BENCH_MODEL": str(model),
            "POSTTRAIN_BENCH_RESULTS": str(tmp_path),
            "POSTTRAIN_BENCH_PEERS": "none",
            "POSTTRAIN_DATA": str(posttrain_data),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


def test_generation(bench):
    found = bench("generation", "--runs", "2", "--rows", "one", "--new-tokens", "3")
    ours = found["rows"]["one"]["posttrain"]
    assert [run["tokens"] for run in ours["runs"]] == [3, 3]
    assert ours["median"]["tokens_per_second"] > 0
    assert "make bench-setup" in str(found["rows"]["one"]["tried for vllm"])
    assert found["rows"]["one"]["ratios"] == {"posttrain/vllm": None, "posttrain/transformers": None}
    assert found["machine"]["gflops"]["float32"] > 0
    assert "share_of_matrix_limit" not in ours["median"]  # one sequence waits for memory


def test_two_hundred_and_fifty_six_at_once(bench, tmp_path):
    """And the share of what matrix products allow: two operations for each of the tiny model's 28,832 parameters."""
    model = tiny_llama(tmp_path / "model", max_position_embeddings=2048)
    arguments = ("--runs", "1", "--rows", "two_fifty_six", "--new-tokens", "2")
    row = bench("generation", *arguments, model=model)["rows"]["two_fifty_six"]
    (run,) = row["posttrain"]["runs"]
    assert run["tokens"] == 512
    assert row["matrix_limit"]["gflop_per_token"] == 2 * 28_832 / 1e9
    share = 512 / run["seconds"] * 2 * 28_832 / 1e9 / row["matrix_limit"]["gflops"]
    assert run["share_of_matrix_limit"] == pytest.approx(share)


@pytest.fixture
def harness(monkeypatch):
    """`benchmarks/harness` as the scripts import it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize(
    ("stage", "figure", "amount"), [("sft", "rows", 2), ("dpo", "pairs", 2), ("grpo", "completions", 4)]
)
def test_training(bench, stage, figure, amount):
    found = bench("training", "--runs", "1", "--stages", stage, "--scale", "0.05")["rows"][stage]
    (run,) = found["posttrain"]["runs"]
    assert run[figure] == amount
    assert found["posttrain"]["peak_rss_gib"] > 0.1
    assert all("make bench-setup" in reason for reason in found["tried for trl"].values())
    assert found["ratios"] == {}
    if stage == "sft":
        share = run["tokens"] / run["seconds"] * 6 * 28_832 / 1e9 / found["matrix_limit"]["gflops"]
        assert run["share_of_matrix_limit"] == pytest.approx(share)


WORKER = """
import json, sys, time
settings = json.loads(sys.stdin.readline())
print(json.dumps({"ready": True}), flush=True)
for turn, _ in enumerate(sys.stdin):
    if turn == settings["dies_at"]:
        sys.exit(9)
    print(json.dumps({"seconds": settings["seconds"]}), flush=True)
print(json.dumps({"peak_rss_gib": 0.1}), flush=True)
"""


def test_a_contestant_that_dies_is_named_and_the_race_goes_on(harness, tmp_path, monkeypatch):
    """As one that the system killed for its memory; in an audition the others still can win."""
    race = harness("harness.race")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(race, "WORKERS", tmp_path)

    def contestant(name: str, seconds: float, dies_at: int = -1):
        return race.Contestant(name, "worker.py", {"seconds": seconds, "dies_at": dies_at}, "")

    found = race.race([contestant("well", 2.0), contestant("ill", 1.0, dies_at=1)], runs=2)
    assert found["well"]["median"] == {"seconds": 2.0} and len(found["well"]["runs"]) == 2
    assert "exit code 9" in found["ill"]["absent"] and "median" not in found["ill"]
    best, tried = race.audition([contestant("a", 3.0), contestant("b", 2.0), contestant("c", 1.0, dies_at=0)])
    assert best.name == "b" and "exit code 9" in tried["c"] and tried["a"]["peak_rss_gib"] == 0.1


def test_growth(bench):
    arguments = (
        "--lengths",
        "8,16",
        "--tokens",
        "32",
        "--counts",
        "1,2",
        "--new-tokens",
        "2",
        "--pairs",
        "3,6",
        "--runs",
        "1",
    )
    rows = bench("growth", *arguments)["rows"]
    assert [point["length"] for point in rows["training"]] == [8, 16]
    assert [point["tokens"] for point in rows["engine"]] == [2, 4]
    assert [point["pairs"] for point in rows["dpo_data"]] == [3, 6]


def test_lm_eval(bench):
    row = bench("lm_eval", "--runs", "1", "--limit", "2", "--new-tokens", "3", "--threads", "1")["rows"][
        "gsm8k"
    ]
    (run,) = row["posttrain"]["runs"]
    assert run["tokens"] == 6  # the random model does not stop
    assert run["seconds"] > 0
    assert "absent" in row["lm-eval 16 eager"]
    assert row["ratios"] == {"posttrain/lm-eval": None}
    assert row["agreement"] is None


def test_where_outputs_part(harness, tiny_llama_dir):
    """The gap is that of one plain float32 forward pass over the whole; a token out of the blue is no near tie."""
    parting = harness("harness.parting")
    prompts = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 20, 21]]
    assert parting.common_prefix(prompts) == [5, 6, 7, 8]
    assert parting.common_prefix([[5, 6], [5, 6]]) == [5]
    written = [30, 31, 32]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()
    with torch.inference_mode():
        row = model(torch.tensor([prompts[1] + written])).logits[0, -1]
    first, second, *_, last = row.argsort(descending=True).tolist()
    logits = parting.Logits(tiny_llama_dir, [5, 6, 7, 8])
    assert parting.part(logits, prompts[1], [*written, first, 3], [*written, first]) is None
    found = parting.part(logits, prompts[1], [*written, second, 3], [*written, first])
    assert (found.position, found.ours, found.theirs, found.are_top_two) == (3, second, first, True)
    assert found.gap == pytest.approx(float(row[second] - row[first]), abs=1e-5)
    assert found.gaps[3] == pytest.approx(-found.gap, abs=1e-5)
    assert len(found.moves) == 6  # before each of the five tokens and after the last
    near = replace(found, gap=-0.03, moves=(0.01, 0.04))
    assert parting.Rounding.of([near]).explains(near)
    assert not parting.Rounding.of([near]).explains(replace(near, gap=0.05))
    far = parting.part(logits, prompts[1], [*written, first], [*written, last])
    assert not far.are_top_two
    assert not parting.Rounding.of([near]).explains(replace(far, gap=0.0))


def test_bfloat16_steps(harness):
    """Eight bits of significand: numbers from 16 to 32 lie 2^(4-7) apart."""
    parting = harness("harness.parting")

    class Fixed:
        def after(self, prompt, written, dtype):
            return torch.tensor([[20.25, 20.5, 1.0]] * (len(written) + 1)) + (
                dtype == torch.bfloat16
            ) * torch.tensor([0.125, 0.0, 0.0])

    found = parting.part(Fixed(), [5], [0, 2], [1, 2])
    assert (found.position, found.gap, found.step, found.moves[0]) == (0, -0.25, 0.125, 0.125)


def test_every_differing_verdict_has_its_sentence(harness):
    agreement, parting = harness("harness.agreement"), harness("harness.parting")

    def item(output, rule, *filters, ids=(1,)):
        rules = zip(("exact_match", *agreement.FILTERS), (rule, *filters), strict=False)
        verdicts = {name: {"read": read, "correct": correct} for name, (read, correct) in rules if read}
        return {"output": output, "ids": ids, "prompt_ids": [1, 2]} | verdicts

    ours = {
        "a": item("-5.", ("5", True)),
        "b": item("8", ("8", False), ids=(1, 2)),
        "c": item("x 3", ("3", True)),
    }
    nothing = (None, False)
    theirs = {
        "a": item("-5.", nothing, ("[invalid]", False), ("-5.", False)),
        "b": item("9", nothing, ("9", True), ("9", True), ids=(1, 3)),
        "c": item("x 3", nothing, ("3", True), ("3", True)),
    }
    assert agreement.same_prompts(ours, theirs) == {"documents": 3, "identical": 3, "tokens": 6}
    rules = agreement.same_rules(ours, theirs)
    assert rules["correct"] == {"exact_match": 2, "strict-match": 2, "flexible-extract": 2}
    assert rules["flexible-extract"]["same_verdict"] == 1
    assert (
        "'-5.'; the published rule takes the last number, '5'"
        in rules["flexible-extract"]["differences"]["a"]
    )
    assert "there is none" in rules["strict-match"]["differences"]["a"]
    tie = parting.Parting(1, 2, 3, gap=0.02, are_top_two=True, step=0.125, gaps=(3.0,), moves=(0.1,))
    words = {2: " 8", 3: " 9"}
    verdicts = agreement.same_verdicts(ours, theirs, {"b": tie}, words)["flexible-extract"]["differences"]
    assert set(verdicts) == {"a", "b"}
    assert "reads '8', wrong; flexible-extract reads '9', correct: the outputs part after 1" in verdicts["b"]
    assert verdicts["b"].endswith(": a near tie")
    far = replace(tie, gap=0.2)
    assert agreement.same_outputs(ours, theirs, {"b": far}, words)["differences"]["b"].endswith(
        "NOT a near tie"
    )
    assert agreement.same_outputs(ours, theirs, {"b": tie}, words)["near_ties"] == 1


def test_verifiers_and_the_picture(bench, tmp_path, posttrain_data):
    rows = bench("verifiers", "--runs", "1", "--checks", "30")["rows"]
    assert rows["gsm8k"]["correct"] == rows["math"]["correct"] == 30
    environment = os.environ | {"POSTTRAIN_BENCH_RESULTS": str(tmp_path)}
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "picture.py")], env=environment, check=True, timeout=120
    )
    assert "<svg" in (tmp_path / "benchmarks.svg").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command", [["gpu.py"], ["generation.py", "--device", "cuda"], ["training.py", "--device", "cuda"]]
)
def test_without_a_gpu_one_sentence_says_so(command):
    command = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "torch sees no CUDA device; run this on" in done.stderr


def test_parameters_that_meet_each_token(harness, tiny_llama_dir, tiny_olmo2_dir, tmp_path):
    """By hand. A layer: 4 x 32 x 32 of attention less two halves, 3 x 32 x 64, and its norms; then the last norm and
    the output projection, 320 x 32. The 1B model has 1,484,916,736 parameters, its embedding 100,352 x 2,048.
    """
    limit, random_model = harness("harness.limit"), harness("harness.random_model")
    layer = 4 * 32 * 32 - 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32
    assert limit.active_parameters(tiny_llama_dir) == 2 * layer + 32 + 320 * 32 == 28_832
    assert limit.active_parameters(tiny_olmo2_dir) == 2 * (layer + 32 + 16) + 32 + 320 * 32
    Olmo2Config(**random_model.SHAPE).save_pretrained(tmp_path)
    assert limit.active_parameters(tmp_path) == 1_484_916_736 - 100_352 * 2048


def test_a_random_model_in_parts(harness, tmp_path, monkeypatch):
    """Small here, in shards as the 1B is: it loads, has the shape, and prompts are ids that it knows."""
    random_model = harness("harness.random_model")
    monkeypatch.setattr(random_model, "_SHARD_BYTES", 100_000)
    sizes = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    random_model.build(tmp_path / "model", random_model.SHAPE | sizes | heads)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    model = load_model(tmp_path / "model", dtype=torch.float32, device=torch.device("cpu"))
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (500, 64)
    assert model.model.layers[2].self_attn.q_norm.weight.tolist() == [1.0] * 64
    assert model.model.layers[2].mlp.up_proj.weight.detach().std().item() == pytest.approx(0.02, rel=0.05)
    assert model.config.rope_parameters["rope_theta"] == 500_000
    tokenizer = load_tokenizer(tmp_path / "model")
    assert max(tokenizer("Tom has 3 apples.").input_ids) < len(tokenizer) <= 500
    assert torch.isfinite(model(torch.tensor([[5, 6, 319]])).logits).all()


def test_bars_are_read_from_the_results(harness, tmp_path, monkeypatch):
    gpu = harness("gpu")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    sft = {"posttrain": {"median": {"share_of_matrix_limit": 0.449}}}
    (tmp_path / "training-cuda-m.json").write_text(json.dumps({"rows": {"sft": sft}}))
    ratios = {"two_fifty_six": {"ratios": {"posttrain/transformers": 5.0}}}
    (tmp_path / "generation-cuda-m.json").write_text(json.dumps({"rows": ratios}))
    assert [line.split(": ")[-1] for line in gpu.bars("m")] == ["MISSED (bar 0.45)", "met (bar 5)"]
    ratios["two_fifty_six"]["ratios"]["posttrain/transformers"] = None
    (tmp_path / "generation-cuda-m.json").write_text(json.dumps({"rows": ratios}))
    assert list(gpu.bars("m"))[1] == "m: 256 at once, ? times transformers.generate: not measured (bar 5)"


def test_names_of_results(harness, monkeypatch):
    device = harness("harness.device")
    monkeypatch.setenv("POSTTRAIN_BENCH_MODEL", "/somewhere/random-olmo2-1b")
    assert device.result_name("growth", "cpu") == "growth"
    assert device.result_name("growth", "cuda") == "growth-cuda-random-olmo2-1b"
