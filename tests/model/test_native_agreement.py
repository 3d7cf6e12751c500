"""With the compiled kernels, sampler and learner are one to the bit in bfloat16, at every length and in any company."""

from __future__ import annotations

import pytest
import torch

from posttrain.data.pack import collate
from posttrain.model.load import load_model, load_tokenizer
from posttrain.model.native import build
from posttrain.model.tiny import tiny_llama, tiny_olmo2
from posttrain.records import Row
from posttrain.rollout.engine import Engine
from posttrain.rollout.sampler import Request, Sampling
from posttrain.runtime.local import LocalLearner

pytestmark = pytest.mark.skipif(build.library() is None, reason=f"no kernels: {build.status()}")
CPU = torch.device("cpu")
LENGTHS = (1, 40, 200, 250, 255, 600)


@pytest.mark.parametrize("make", [tiny_llama, tiny_olmo2])
@pytest.mark.parametrize("samples", [1, 3])
def test_recorded_log_probabilities_are_the_learners(make, samples, tmp_path):
    """Prompts of these lengths, each continued by 70 tokens, so that rows cross 256 on the way. Closes T33."""
    heads = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    folder = make(tmp_path / "model", max_position_embeddings=1024, **heads)
    model, tokenizer = load_model(folder, dtype=torch.float32, device=CPU), load_tokenizer(folder)
    engine = Engine(model.config, stop_ids=(), decode=tokenizer.decode, dtype=torch.bfloat16)
    engine.load(model.state_dict(), version=0)
    stream = torch.Generator().manual_seed(0)
    prompts = [
        tuple(torch.randint(0, model.config.vocab_size, (n,), generator=stream).tolist()) for n in LENGTHS
    ]
    requests = [Request(prompt, tuple(range(i * 10, i * 10 + samples))) for i, prompt in enumerate(prompts)]
    groups = engine.generate(requests, Sampling(max_new_tokens=70))
    pairs = [(r.prompt_ids, c) for r, group in zip(requests, groups, strict=True) for c in group]
    rows = [Row("", p + c.ids, (False,) * len(p) + (True,) * len(c.ids)) for p, c in pairs]
    recorded = torch.tensor([value for _, completion in pairs for value in completion.logprobs])
    learner = LocalLearner(model, compute_dtype=torch.bfloat16)
    batch = collate(rows)
    together = learner.logprobs(batch)[batch.mask]
    alone = torch.cat([learner.logprobs(one)[one.mask] for one in (collate([row]) for row in rows)])
    # a unit or two in the last place of float32: the sum over the vocabulary is in blocks of other sizes
    torch.testing.assert_close(together, recorded, rtol=1e-6, atol=2e-6)
    assert torch.equal(alone, together)
