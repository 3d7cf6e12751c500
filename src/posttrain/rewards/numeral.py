"""Numbers as people write them: signs, currency, thousands, decimals, fractions, powers of ten."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

Number = int | Fraction

NUMBER = re.compile(
    r"""
    (?=[-+$£€¥₹.\d])
    (?P<sign>(?<![\w)\]}%.])[-+](?=[$£€¥₹.\d])|(?<==\ )-\ (?=[$£€¥₹.\d]))?
    (?:[$£€¥₹]\ ?(?P<inner>-(?=[\d.]))?)?
    (?=\.?\d)
    (?:
        (?P<whole>\d{1,15})\ (?P<part>\d{1,15}/\d{1,15})(?![\d/.,])
      | (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\ \d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?
        (?P<power>[eE][-+]?\d+(?!\w))?(?:/(?P<under>\d+(?:\.\d+)?))?
    )
    (?:\ (?P<scale>thousand|million|billion)\b)?
    """,
    re.VERBOSE,
)
"""One number; thousands are grouped by commas or single spaces, in threes only."""

LIST, RANGE, EXPRESSION, MALFORMED, OTHER = "list", "range", "expression", "malformed", "other"
_LIST = re.compile(r"\s*[,;|&]\s*(?:(?:or|and)\s+)?|\s+(?:(?:or|and|to)\s+)?")
_EXPRESSION = re.compile(r"\s*[-+*/×÷^]\s*[(]?")
_SCALE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_LONGEST = 200
_LONGEST_POWER = 5  # "e-300" at most

_CHARACTERS = {
    **dict.fromkeys("−–‐‑－", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007", " "),
    **dict.fromkeys("⋅·∙", "×"),
    "٫": ".",
    "٬": ",",
    "％": "%",
    "＄": "$",
}
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_FRACTION = re.compile(r"(?<=\d)?\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_LATEX = re.compile(r"\\(?:text|mbox|textbf|mathbf|mathrm|textrm)\s*\{([^{}]*)\}")
_DROPPED = re.compile(r"\\[!,;: ]|\\(?:left|right|quad|displaystyle)(?![A-Za-z])|\\[()\[\]]|\^\{?\\circ\}?")
_OPERATOR = re.compile(r"\\(?:times|cdot)(?![A-Za-z])")


def plain_text(text: str) -> str:
    """`text` with digits of every script, minus signs and LaTeX number furniture made plain."""
    if not text.isascii():
        text = _NOT_ASCII.sub(_ascii, text)
    if "\\" in text or "{" in text:
        text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("{-}", "-")
        text = _LATEX.sub(r" \1 ", text)
        text = _FRACTION.sub(r" \1/\2", text)
        text = _DROPPED.sub("", text)
        text = _OPERATOR.sub("×", text).replace("\\div", "÷")
    if "*" in text or "`" in text:
        text = text.replace("**", " ").replace("`", " ")
    return text


def _ascii(found: re.Match[str]) -> str:
    character = found[0]
    plain = _CHARACTERS.get(character)
    if plain is not None:
        return plain
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def number_value(found: re.Match[str]) -> Number | None:
    """The exact value of a match of `NUMBER`; None for a zero denominator or an absurd length."""
    sign, inner, whole, part, digits, decimals, power, under, scale = found.groups()
    if found.end() - found.start() > _LONGEST:
        return None
    value: Number
    if whole:
        over, under = part.split("/")
        if int(under) == 0:
            return None
        value = int(whole) + Fraction(int(over), int(under))
    else:
        value = int(digits.replace(",", "").replace(" ", "")) if digits else 0
        if decimals and decimals.strip(".0"):
            value += Fraction(int(decimals[1:]), 10 ** (len(decimals) - 1))
        if power:
            if len(power) > _LONGEST_POWER:
                return None
            value *= Fraction(10) ** int(power[1:])
        if under:
            if not under.strip("0."):
                return None
            value /= Fraction(under)
    if scale:
        value *= _SCALE[scale]
    return -value if (sign is not None and sign[0] == "-") != (inner is not None) else value


def join_between(text: str, left: re.Match[str], right: re.Match[str]) -> str:
    """How two neighbouring numbers hang together: a list, a range, an expression, nonsense or not at all."""
    gap = text[left.end() : right.start()]
    if gap == "" or gap in (":", "/"):
        return EXPRESSION if right["sign"] else MALFORMED
    if gap == "-" and left["sign"] is None:
        return RANGE
    if _EXPRESSION.fullmatch(gap):
        return EXPRESSION
    return LIST if _LIST.fullmatch(gap) else OTHER
