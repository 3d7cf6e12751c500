"""Conversations to training rows; what cannot be used is dropped, counted and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.data.render import Renderer
from posttrain.errors import DataError
from posttrain.records import Conversation, Dropped, Row

EXAMPLES_PER_REASON = 5


@dataclass(slots=True)
class Tally:
    """Counts dropped rows by reason and keeps the first few of each as examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def drop(self, reason: str, example: str) -> None:
        """Count one row under `reason`; `example` is a sentence that names it."""
        self.counts[reason] += 1
        if self.counts[reason] <= EXAMPLES_PER_REASON:
            self.examples.append(example)

    def result(self, num_kept: int) -> Dropped:
        """What was dropped; a DataError if that was everything."""
        total = sum(self.counts.values())
        if not num_kept:
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in self.counts.items()) or "no rows given"
            )
            first = f"; for example {self.examples[0]}" if self.examples else ""
            raise DataError(f"none of the {total} rows can be used ({reasons}){first}")
        return Dropped(dict(self.counts), tuple(self.examples))


def sft_rows(
    conversations: Sequence[Conversation], renderer: Renderer, *, max_tokens: int
) -> tuple[list[Row], Dropped]:
    """One row per conversation, in order, every assistant turn a target.

    Dropped and counted: `no_assistant_turn`; `too_long`, more than `max_tokens` tokens (a cut answer would
    teach not to stop); `refused` by the renderer. Raises DataError if nothing is left.
    """
    rows: list[Row] = []
    tally = Tally()
    spoken = []
    for conversation in conversations:
        if any(m.role == "assistant" for m in conversation.messages):
            spoken.append((conversation.id, conversation.messages))
        else:
            tally.drop("no_assistant_turn", f"{conversation.id}: no assistant turn")
    for (name, _), row in zip(spoken, renderer.conversations(spoken), strict=True):
        if isinstance(row, DataError):
            tally.drop("refused", str(row))
            continue
        if len(row.ids) > max_tokens:
            tally.drop("too_long", f"{name}: {len(row.ids):,} tokens, max_tokens is {max_tokens:,}")
            continue
        rows.append(row)
    return rows, tally.result(len(rows))
