"""Seeds as a pure function of what they are for, so that nothing depends on the order of calls."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed for `parts`, such as (run seed, stage, step, place in the step, sample).

    Two different tuples give unrelated seeds; the same tuple always gives the same one, on any machine.
    """
    # a separator inside a part is doubled, so that no text can pass for two parts
    text = "\x1f".join(f"{type(part).__name__}:{part}".replace("\x1f", "\x1f\x1f") for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
