"""Preferences to pairs of training rows."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.render import Renderer
from posttrain.data.rows import Tally
from posttrain.errors import DataError
from posttrain.records import Dropped, Preference, Row


def pair_rows(
    preferences: Sequence[Preference], renderer: Renderer, *, max_tokens: int
) -> tuple[list[tuple[Row, Row]], Dropped]:
    """(chosen, rejected) rows, in order; only the last assistant turn of each is a target.

    Their ids are the preference's with `/chosen` and `/rejected` after it. Dropped and counted, always both
    sides: `too_long` if either has more than `max_tokens` tokens; `equal` if the template renders both alike;
    `refused` by the renderer. Raises DataError if nothing is left.
    """
    pairs: list[tuple[Row, Row]] = []
    tally = Tally()
    sides = (
        (f"{preference.id}/{side}", messages)
        for preference in preferences
        for side, messages in (("chosen", preference.chosen), ("rejected", preference.rejected))
    )
    rows = renderer.conversations(sides, train_on="last")
    for preference, chosen, rejected in zip(preferences, rows, rows, strict=True):
        name = preference.id
        if isinstance(chosen, DataError) or isinstance(rejected, DataError):
            tally.drop("refused", str(chosen if isinstance(chosen, DataError) else rejected))
            continue
        longest = max(len(chosen.ids), len(rejected.ids))
        if longest > max_tokens:
            tally.drop("too_long", f"{name}: {longest:,} tokens, max_tokens is {max_tokens:,}")
        elif chosen.ids == rejected.ids:
            tally.drop("equal", f"{name}: chosen and rejected render to the same tokens")
        else:
            pairs.append((chosen, rejected))
    return pairs, tally.result(len(pairs))
