"""A conversation in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

from posttrain.errors import UserError
from posttrain.records import Message
from posttrain.rollout.open import open_engine
from posttrain.rollout.sampler import Request, Sampling
from posttrain.train.seeds import seed_of

if TYPE_CHECKING:
    from rich.console import Console

    from posttrain.data.render import Renderer
    from posttrain.rollout.engine import Engine

HELP = "/clear starts over, /quit or Ctrl-D leaves, Ctrl-C stops a reply"


def reply(
    engine: Engine, renderer: Renderer, messages: list[Message], sampling: Sampling, *, seed: int
) -> Iterator[str]:
    """The pieces of text of one reply, as they are drawn; a character is given out once it is whole."""
    ids: list[int] = []
    said = ""
    for token in engine.stream(Request(renderer.prompt(messages), (seed,)), sampling):
        ids.append(token.id)
        text = renderer.decode(ids)
        if token.completion is None and text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue  # half of a character; the next token brings the rest
        yield text[len(said) :]
        said = text


def chat(
    model: str,
    *,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    console: Console,
) -> None:
    """Read lines, stream replies, until the input ends. The whole conversation is the next prompt."""
    engine, renderer = open_engine(model)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    opening = [] if system is None else [Message("system", system)]
    messages = list(opening)
    console.print(f"{model} - {HELP}", style="dim", highlight=False, markup=False)
    for turn in count():
        try:
            line = console.input("[bold cyan]you>[/] ").strip()
        except EOFError:
            console.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/clear":
            messages = list(opening)
        elif line:
            messages.append(Message("user", line))
            said = ""
            try:
                for piece in reply(engine, renderer, messages, sampling, seed=seed_of(seed, turn)):
                    said += piece
                    console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            except KeyboardInterrupt:
                console.print(" [stopped]", style="dim", markup=False, end="")
            except UserError as error:
                console.print(f"{error}; /clear starts over", style="red", markup=False, end="")
            console.print()
            if said:
                messages.append(Message("assistant", said))
            else:
                messages.pop()  # unanswered, it would stand next to the next user turn
