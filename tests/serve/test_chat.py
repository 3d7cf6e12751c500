"""The terminal chat: pieces of whole characters, and a conversation that stays in order."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from posttrain.records import Completion, Message
from posttrain.rollout.engine.running import Token
from posttrain.rollout.sampler import Sampling
from posttrain.serve import chat as module
from posttrain.serve.chat import chat, reply


@dataclass
class Script:
    """An engine that answers each request with the next of `replies`; "!" stands for Ctrl-C at that point."""

    renderer: object
    replies: list[str]
    prompts: list[tuple[int, ...]]
    seeds: list[int]

    def stream(self, request, sampling):
        self.prompts.append(request.prompt_ids)
        self.seeds += request.seeds
        said, interrupted, _ = self.replies.pop(0).partition("!")
        ids = self.renderer.tokenizer.encode(said, add_special_tokens=False)
        ids = ids if interrupted else [*ids, self.renderer.stop_ids[0]]
        for place, id in enumerate(ids):
            last = not interrupted and place == len(ids) - 1
            done = Completion(tuple(ids), (0.0,) * len(ids), "stop", said) if last else None
            yield Token(0, 0, id, done)
        if interrupted:
            raise KeyboardInterrupt


@pytest.fixture
def talk(opened, monkeypatch):
    """`talk(lines, replies)`: run a chat; its console's text and the scripted engine."""
    _, renderer = opened

    def run(lines, replies, *, system=None, seed=0):
        engine = Script(renderer, list(replies), [], [])
        left = iter(lines)

        def answer(*_):
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(module, "open_engine", lambda name: (engine, renderer))
        monkeypatch.setattr("builtins.input", answer)
        out = io.StringIO()
        chat(
            "tiny",
            system=system,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=50,
            seed=seed,
            console=Console(file=out, width=60),
        )
        assert not list(left), "the chat ended before its lines"
        return out.getvalue(), engine

    return run


def prompt_of(renderer, *turns):
    return renderer.prompt([Message(role, content) for role, content in turns])


@pytest.mark.parametrize("said", ["plain words", "naïve 数学 🙂🙂 end", "ends in half \ufffd", "🙂", ""])
def test_pieces_join_to_the_reply_and_never_split_a_character(opened, said):
    """The tiny tokenizer gives each byte of such characters its own token."""
    _, renderer = opened
    engine = Script(renderer, [said], [], [])
    pieces = list(reply(engine, renderer, [Message("user", "hi")], Sampling(), seed=1))
    assert "".join(pieces) == said
    if "\ufffd" not in said:
        assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_are_those_of_the_engine(opened):
    """With the real engine: the pieces make the completion's text."""
    engine, renderer = opened
    messages = [Message("user", "Tell me more.")]
    sampling = Sampling(max_new_tokens=40)
    for seed in range(5):
        expected = [t.completion for t in engine.stream(request_of(renderer, messages, seed), sampling)][-1]
        assert "".join(reply(engine, renderer, messages, sampling, seed=seed)) == expected.text


def request_of(renderer, messages, seed):
    from posttrain.rollout.sampler import Request

    return Request(renderer.prompt(messages), (seed,))


def test_the_whole_conversation_is_the_next_prompt(talk, opened):
    """Rendered as in training, default system prompt included. Closes T5."""
    _, renderer = opened
    text, engine = talk(["one", "two"], ["first answer", "second answer"])
    assert engine.prompts == [
        prompt_of(renderer, ("user", "one")),
        prompt_of(renderer, ("user", "one"), ("assistant", "first answer"), ("user", "two")),
    ]
    assert "first answer\n" in text
    assert "second answer\n" in text
    assert len(set(engine.seeds)) == 2


def test_a_system_prompt_stays_when_the_conversation_is_cleared(talk, opened):
    _, renderer = opened
    _, engine = talk(["one", "/clear", "two"], ["a", "b"], system="Be kind.")
    assert engine.prompts == [
        prompt_of(renderer, ("system", "Be kind."), ("user", "one")),
        prompt_of(renderer, ("system", "Be kind."), ("user", "two")),
    ]


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_leaving(talk, word):
    _, engine = talk(["one", word], ["a"])
    assert len(engine.prompts) == 1


def test_empty_lines_ask_nothing(talk):
    _, engine = talk(["", "   ", "one"], ["a"])
    assert len(engine.prompts) == 1


def test_a_stopped_reply_is_kept_as_far_as_it_was_said(talk, opened):
    _, renderer = opened
    text, engine = talk(["one", "two"], ["half an!swer", "b"])
    assert "half an [stopped]" in text
    assert engine.prompts[1] == prompt_of(
        renderer, ("user", "one"), ("assistant", "half an"), ("user", "two")
    )


@pytest.mark.parametrize("nothing", ["!", ""])
def test_a_turn_without_an_answer_is_forgotten(talk, opened, nothing):
    """Two user turns in a row are not what models were trained on, and some templates refuse them."""
    _, renderer = opened
    _, engine = talk(["one", "two"], [nothing, "b"])
    assert engine.prompts[1] == prompt_of(renderer, ("user", "two"))


def test_a_conversation_that_no_longer_fits_says_so_and_goes_on(opened, monkeypatch):
    """With the real engine, whose model has 512 positions."""
    engine, renderer = opened
    lines = iter(["word " * 600, "short"])
    seen = []
    stream = engine.stream

    def spy(request, sampling):
        seen.append(request.prompt_ids)
        return stream(request, sampling)

    def answer(*_):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(module, "open_engine", lambda name: (engine, renderer))
    monkeypatch.setattr(engine, "stream", spy)
    monkeypatch.setattr("builtins.input", answer)
    out = io.StringIO()
    console = Console(file=out, width=200)
    chat("tiny", system=None, temperature=1.0, top_p=1.0, max_new_tokens=5, seed=0, console=console)
    assert "/clear starts over" in out.getvalue().split("\n", 1)[1]
    assert seen[1] == prompt_of(renderer, ("user", "short"))


def test_markup_in_a_reply_is_plain_text(talk):
    text, _ = talk(["one"], ["[bold]not bold[/bold] :smile:"])
    assert "[bold]not bold[/bold] :smile:" in text
