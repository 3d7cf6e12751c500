"""Published sample rows: all of them are read, rendered and masked as their text says."""

from __future__ import annotations

from collections import Counter

import pytest

from posttrain.data.conversation import read_conversations, read_preferences, read_problems
from posttrain.data.pairs import pair_rows
from posttrain.data.render import Renderer
from posttrain.data.rows import sft_rows
from posttrain.data.sources import read_rows


@pytest.fixture
def sample(posttrain_data):
    return lambda name: read_rows(str(posttrain_data / "tulu3_samples" / f"{name}.jsonl"))


def targets(renderer, row):
    kept = [i for i, wanted in zip(row.ids, row.mask, strict=True) if wanted]
    return renderer.tokenizer.decode(kept, skip_special_tokens=False)


def test_sft_sample(sample, styled):
    """Closes T2 and T6 on real rows: all 100 have the mask that their form by hand has."""
    style, renderer = styled
    conversations = read_conversations(sample("sft_sample"))
    rows, dropped = sft_rows(conversations, renderer, max_tokens=100_000)
    assert len(rows) == 100 and dropped.counts == {}
    assert [row.id for row in rows] == [c.id for c in conversations]
    for conversation, row in zip(conversations, rows, strict=True):
        said = "".join(text for text, target in style.pieces(conversation.messages) if target)
        assert targets(renderer, row) == said
    assert Counter(c.source for c in conversations) == {"ai2-adapt-dev/oasst1_converted": 100}


def test_preference_sample(sample, tulu):
    """Both sides of all 100 pairs: the target is the last reply and its closing token.

    Three replies open with newlines that merge with the header's, which then is in the target (T7).
    """
    preferences = read_preferences(sample("preference_sample"))
    pairs, dropped = pair_rows(preferences, tulu, max_tokens=100_000)
    assert len(pairs) == 100 and dropped.counts == {}
    merged = 0
    for preference, pair in zip(preferences, pairs, strict=True):
        prompt = tulu.prompt(preference.chosen[:-1])
        for messages, row in zip((preference.chosen, preference.rejected), pair, strict=True):
            said = messages[-1].content + "<|im_end|>"
            if row.ids[: len(prompt)] == prompt:
                assert targets(tulu, row) == said
            else:
                assert said.startswith("\n") and targets(tulu, row) == "\n" + said
                assert row.ids[: len(prompt) - 1] == prompt[:-1]
                merged += 1
    assert merged <= 3


def test_rlvr_sample(sample, chatml):
    """The counts that the data's description gives: 52 MATH and 48 GSM8K, all with a prompt."""
    problems = read_problems(sample("rlvr_sample"))
    assert Counter(problem.verifier for problem in problems) == {"math": 52, "gsm8k": 48}
    assert len({problem.id for problem in problems}) == 100
    header = tuple(chatml.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
    for problem in problems:
        assert problem.ground_truth and problem.messages[-1].role == "user"
        assert chatml.prompt(problem.messages)[-len(header) :] == header


def test_rlvr_test_rows(sample):
    problems = read_problems(sample("rlvr_test"))
    assert problems[0].messages[0].content == "What is 1 + 2?" and problems[0].ground_truth == "3"
    assert {problem.verifier for problem in problems} == {"test"}


def test_real_tokenizer(sample, smollm2_dir):
    """Closes T1, T2 and T5 with SmolLM2's own tokenizer and template, as the quickstart uses them."""
    from transformers import AutoTokenizer

    renderer = Renderer(AutoTokenizer.from_pretrained(smollm2_dir))
    assert renderer.stop_ids == (renderer.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    conversations = read_conversations(sample("sft_sample"))
    rows, dropped = sft_rows(conversations, renderer, max_tokens=100_000)
    assert len(rows) == 100 and dropped.counts == {}
    for conversation, row in zip(conversations, rows, strict=True):
        replies = [m.content + "<|im_end|>" for m in conversation.messages if m.role == "assistant"]
        assert targets(renderer, row) == "".join(replies)
        text = renderer.text(conversation.messages)
        assert list(row.ids) == renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = renderer.prompt(conversation.messages[:1])
        assert row.ids[: len(prompt)] == prompt
