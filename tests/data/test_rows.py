"""What becomes of rows and pairs that cannot be used."""

from __future__ import annotations

import pytest

from posttrain.data.pairs import pair_rows
from posttrain.data.rows import EXAMPLES_PER_REASON, sft_rows
from posttrain.errors import DataError
from posttrain.records import Conversation, Message, Preference


def chat(id, question="Q", answer="A"):
    return Conversation(id, (Message("user", question), Message("assistant", answer)))


def preference(id, chosen="good", rejected="bad", question="Q"):
    asked = Message("user", question)
    return Preference(id, (asked, Message("assistant", chosen)), (asked, Message("assistant", rejected)))


def test_rows_in_order(tulu):
    rows, dropped = sft_rows([chat("a"), chat("b", answer="B")], tulu, max_tokens=100)
    assert [row.id for row in rows] == ["a", "b"]
    assert rows[1] == tulu.conversation(chat("b", answer="B").messages, id="b")
    assert dropped.counts == {} and dropped.examples == ()


def test_too_long_rows_are_dropped_and_counted(tulu):
    """Closes T8: a row longer than the limit is dropped whole, never cut to a row without targets."""
    limit = len(tulu.conversation(chat("x").messages).ids)
    long_question, long_answer = chat("q", question="Q" * 200), chat("w", answer="A" * 200)
    rows, dropped = sft_rows([chat("x"), long_question, chat("y"), long_answer], tulu, max_tokens=limit)
    assert [row.id for row in rows] == ["x", "y"]
    assert all(len(row.ids) == limit and any(row.mask) for row in rows)
    assert dropped.counts == {"too_long": 2}
    assert dropped.examples[0].startswith("q: ") and f"max_tokens is {limit}" in dropped.examples[0]
    with pytest.raises(DataError, match="none of the 1 rows can be used"):
        sft_rows([chat("x")], tulu, max_tokens=limit - 1)


def test_rows_without_assistant_turn_are_dropped_and_counted(tulu):
    silent = Conversation("s", (Message("user", "Q"),))
    rows, dropped = sft_rows([silent, chat("a")], tulu, max_tokens=100)
    assert [row.id for row in rows] == ["a"]
    assert dropped.counts == {"no_assistant_turn": 1} and "s: no assistant turn" in dropped.examples


def test_refused_rows_are_dropped_and_counted(chatml_tokenizer):
    from posttrain.data.render import Renderer

    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    body = "{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    odd = Conversation("odd", (Message("system", "S"), *chat("x").messages))
    rows, dropped = sft_rows([odd, chat("a")], Renderer(chatml_tokenizer, no_system + body), max_tokens=100)
    assert [row.id for row in rows] == ["a"]
    assert dropped.counts == {"refused": 1}
    assert "row 'odd'" in dropped.examples[0] and "no system turns" in dropped.examples[0]


def test_examples_are_few_and_of_every_reason(tulu):
    silent = Conversation("s", (Message("user", "Q"),))
    conversations = [*(chat(f"l{i}", answer="A" * 200) for i in range(20)), silent, chat("a")]
    _, dropped = sft_rows(conversations, tulu, max_tokens=30)
    assert dropped.counts == {"too_long": 20, "no_assistant_turn": 1}
    assert len(dropped.examples) == EXAMPLES_PER_REASON + 1


def test_nothing_left(tulu):
    with pytest.raises(DataError, match=r"none of the 2 rows can be used \(2 too_long\); for example a: "):
        sft_rows([chat("a"), chat("b")], tulu, max_tokens=3)
    with pytest.raises(DataError, match="none of the 0 rows"):
        sft_rows([], tulu, max_tokens=3)


def test_pairs_train_on_the_last_turn_only(tulu):
    asked = (Message("user", "Q"), Message("assistant", "one"), Message("user", "R"))
    good, bad = (*asked, Message("assistant", "good")), (*asked, Message("assistant", "bad"))
    [(chosen, rejected)], _ = pair_rows([Preference("p", good, bad)], tulu, max_tokens=100)
    assert (chosen.id, rejected.id) == ("p/chosen", "p/rejected")
    for row, said in ((chosen, "good<|im_end|>"), (rejected, "bad<|im_end|>")):
        targets = [i for i, wanted in zip(row.ids, row.mask, strict=True) if wanted]
        assert tulu.tokenizer.decode(targets) == said


def test_pairs_are_dropped_by_their_longer_side(tulu):
    """Closes T8 for pairs: a side that is too long takes the other with it."""
    preferences = [
        preference("a"),
        preference("long chosen", chosen="x" * 200),
        preference("long rejected", rejected="x" * 200),
        preference("b"),
    ]
    pairs, dropped = pair_rows(preferences, tulu, max_tokens=40)
    assert [chosen.id for chosen, _ in pairs] == ["a/chosen", "b/chosen"]
    assert dropped.counts == {"too_long": 2}


def test_pairs_the_template_makes_equal_are_dropped(chatml_tokenizer):
    from posttrain.data.render import Renderer

    trims = "{% for m in messages %}{{ '<|im_start|>' + m.content | trim + '<|im_end|>' }}{% endfor %}"
    preferences = [preference("same", chosen="x", rejected="x \n"), preference("a")]
    pairs, dropped = pair_rows(preferences, Renderer(chatml_tokenizer, trims), max_tokens=100)
    assert [chosen.id for chosen, _ in pairs] == ["a/chosen"]
    assert dropped.counts == {"equal": 1}
