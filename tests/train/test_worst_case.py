"""The rehearsal of a stage's largest micro-batch: as large as planned, and without a trace."""

from __future__ import annotations

import pytest
import torch

from posttrain.config.sft import SFT
from posttrain.config.sizing_batch import largest_micro_batch, longest_row
from posttrain.model.tree import plant
from posttrain.train.checkpoint import Checkpoints
from posttrain.train.worst_case import dummy_batch, is_due, rehearse

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("max_tokens", [40, 64, 200, 1000])
@pytest.mark.parametrize("rows_per_micro_batch", [None, 3])
def test_the_dummy_batch_is_what_was_planned(grpo, max_tokens, rows_per_micro_batch):
    cfg = grpo(
        prompts_per_step=8,
        samples_per_prompt=4,
        max_prompt_tokens=40,
        max_new_tokens=24,
        rows_per_micro_batch=rows_per_micro_batch,
    )
    planned = largest_micro_batch(cfg, max_tokens)
    batch = dummy_batch(planned.bundles)
    tree = plant(batch.ids.numpy(), batch.lengths)
    assert (len(tree.tokens), len(batch.ids)) == (planned.packed_tokens, planned.tokens)
    assert batch.num_targets == planned.targets
    assert max(batch.lengths) == longest_row(cfg)


def test_a_rehearsal_leaves_no_trace(adam_learner, make_rows, tmp_path):
    """Two updates after it give the bits that they give without it."""
    from posttrain.data.pack import collate

    def trained(rehearsed: bool) -> dict[str, torch.Tensor]:
        learner = adam_learner(weight_decay=0.1)
        if rehearsed:
            cfg = SFT(data=({"path": "x"},), max_tokens=64, batch_rows=8)
            rehearse([learner], cfg, max_tokens=128, checkpoints=Checkpoints(tmp_path / "none", every=None))
            assert learner.num_updates == 0
            assert learner.state_dict()["optimizer"]["state"] == {}
            assert all(p.grad is None for p in learner.module.parameters())
        for seed in range(2):
            batch = collate(make_rows(4, seed=seed))
            learner.forward_backward(batch, lambda lp, b: (-(lp * b.mask).sum() / b.num_targets, {}))
            learner.optim_step(learning_rate=1e-3, max_grad_norm=1.0)
        return {name: weight.clone() for name, weight in learner.weights().items()}

    plain, rehearsed = trained(False), trained(True)
    assert all(torch.equal(plain[name], rehearsed[name]) for name in plain)


class Counting:
    """A learner that notes what it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        self.batches.append(-1)

    def forward_backward(self, batch, loss_fn):
        self.batches.append(len(batch.ids))
        loss_fn(torch.zeros(len(batch.ids)), batch)
        return {}

    def optim_step(self, *, learning_rate, max_grad_norm):
        assert learning_rate == 0.0
        self.batches.append(0)
        return {}


def test_moments_and_gradients_are_in_place_when_the_largest_comes(tmp_path):
    """Small, update (0): the moments; small, largest: the step's gradient; then all is put back (-1)."""
    checkpoints = Checkpoints(tmp_path, every=1)
    cfg = SFT(data=({"path": "x"},), max_tokens=64, batch_rows=8)
    several, alone = Counting(), Counting()
    rehearse([several], cfg, max_tokens=128, checkpoints=checkpoints)
    assert several.batches == [2, 0, 2, 128, 0, -1]
    rehearse([alone], cfg, max_tokens=1000, checkpoints=checkpoints)
    assert alone.batches == [2, 0, 512, 0, -1]


def test_a_resumed_stage_is_not_rehearsed(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(1, {"step": 1})
    learner = Counting()
    cfg = SFT(data=({"path": "x"},), max_tokens=64, batch_rows=8)
    rehearse([learner], cfg, max_tokens=128, checkpoints=checkpoints)
    assert learner.batches == []


def test_auto_rehearses_where_memory_is_the_devices_own():
    assert [is_due(way, CPU) for way in ("auto", "always", "never")] == [False, True, False]
    assert [is_due(way, GPU) for way in ("auto", "always", "never")] == [True, True, False]


@pytest.mark.parametrize("way", ["always", "never"])
def test_a_run_that_rehearses_learns_the_same(run_tiny, tmp_path, way):
    """Every kind of stage through `posttrain run`: losses to the bit."""
    import json

    def losses(how: str) -> list[list[dict]]:
        folder, _ = run_tiny(tmp_path / how, f"runtime.rehearse={how}")
        return [
            [
                {
                    k: v
                    for k, v in json.loads(line).items()
                    if not k.startswith(("time/", "memory/", "throughput/"))
                }
                for line in path.read_text().splitlines()
            ]
            for path in sorted(folder.glob("stages/*/metrics.jsonl"))
        ]

    assert losses(way) == losses("auto")
