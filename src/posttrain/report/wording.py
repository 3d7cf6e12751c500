"""Numbers as the report says them."""

from __future__ import annotations

import math

from posttrain.train.progress import spell_seconds

__all__ = ["bracket", "compact", "count", "percent", "plain", "points", "spell_seconds"]

SPACE = "\u00a0"
MINUS = "\u2212"


def percent(share: float) -> str:
    """0.523 as `52.3 %`; a dash when there is no number."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}{SPACE}%"


def points(difference: float) -> str:
    """0.353 as `+35.3`, -0.02 as `−2.0`: percentage points with a sign."""
    if math.isnan(difference):
        return "–"
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def bracket(low: float, high: float) -> str:
    """An interval of fractions as `[30.1, 40.4]`, in percent or percentage points."""
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    return f"[{_signed(low)}, {_signed(high)}]"


def plain(text: object, limit: int = 4000) -> str:
    """`text` fit to be shown: control characters made visible, lone surrogates replaced, cut at `limit`."""
    shown = str(text).encode("utf-8", "replace").decode("utf-8")
    cut = len(shown) - limit
    if cut > 0:
        shown = f"{shown[:limit]} … ({cut:,} more characters)"
    return "".join(_visible(character) for character in shown)


def count(number: object, noun: str) -> str:
    """`1 row`, `1,907 rows`; what is no whole number is shown as it is."""
    if not isinstance(number, int):
        return f"{plain(number, 40)} {noun}s"
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def compact(value: float) -> str:
    """A number in few characters, for axes and labels: `0.25`, `1.5k`, `5e-7`."""
    if value == 0:
        return "0"
    size = abs(value)
    sign = MINUS if value < 0 else ""
    if size >= 1e6:
        return f"{sign}{size / 1e6:.3g}M"
    if size >= 1e4:
        return f"{sign}{size / 1e3:.3g}k"
    if size >= 1e3:
        return f"{sign}{size:,.0f}"
    if size < 1e-3:
        digits, _, power = f"{size:.2e}".partition("e")
        return f"{sign}{float(digits):g}e{MINUS}{abs(int(power))}"
    return f"{sign}{size:.3g}"


def _signed(share: float) -> str:
    rounded = round(100 * share, 1)
    return f"{MINUS if rounded < 0 else ''}{abs(rounded):.1f}"


def _visible(character: str) -> str:
    code = ord(character)
    if code < 32 and character not in "\n\t":
        return chr(0x2400 + code)
    # Bidirectional overrides could make a completion rewrite the page around it.
    return "\ufffd" if code == 127 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 else character
