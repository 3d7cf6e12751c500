"""Units after a number: `2\\text{ cm}`, `5 apples`, `\\$40`. They carry no value unless they contradict."""

from __future__ import annotations

import re

from posttrain.rewards.math_expression import FUNCTIONS

_SAME_UNIT = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "acre": "",
    "km": "kilometer kilometre", "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "l": "liter litre", "ml": "milliliter millilitre", "gallon": "", "g": "gram gm", "kg": "kilogram",
    "lb": "pound", "oz": "ounce", "s": "sec second", "min": "minute", "h": "hr hour", "day": "",
    "week": "", "month": "", "year": "", "mph": "", "degree": "", "radian": "rad",
    "dollar": "usd", "cent": "", "euro": "",
}  # fmt: skip
KNOWN = {spelling: unit for unit, others in _SAME_UNIT.items() for spelling in (unit, *others.split())}
KNOWN |= {spelling + "s": unit for spelling, unit in KNOWN.items() if len(spelling) > 2}

_VALUE_WORDS = (
    "or and not no nor to than least most about approximately approx around between plus minus times over "
    "half hundred thousand million billion trillion dozen tenths hundredths percent if when for is are mod"
)
_NO_UNIT = FUNCTIONS.union(_VALUE_WORDS.split(), ("base", "sqrt", "pi", "infinity", "infty", "binom"))
_WORDS = re.compile(r"[A-Za-z][A-Za-z.]*(?:[ -][A-Za-z][A-Za-z.]*){0,3}")
_SHORT = frozenset((*KNOWN, "of", "per", "a", "the", "sq"))
_VOWEL = re.compile(r"[aeiou]", re.IGNORECASE)
_NUMBER = r"[-+]?(?:\\\$)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?|[-+]?\d*\\frac\{\d+\}\{\d+\}"
_BARE_WORDS = re.compile(rf"({_NUMBER}) ?([A-Za-z]{{2,}}(?: [A-Za-z]+){{0,3}})(\^\{{?[23]\}}?)?")
_TEXT_AT_END = re.compile(r"(.*?)\\text\{([^{}]*)\}(?:\^(?:\{[23]\}|[23]))?", re.DOTALL)


def split_unit(text: str) -> tuple[str, str]:
    r"""(`text` without its unit, the unit in a known spelling, "other", or "").

    Text that could change the value (`or`, `million`, `not`, digits) is no unit and stays where it is.
    """
    unit = ""
    stripped = text.lstrip("-+")
    sign = text[: len(text) - len(stripped)]
    if stripped.startswith("\\$"):
        text, unit = sign + stripped.removeprefix("\\$"), "dollar"
    elif stripped.endswith("\\$"):
        text, unit = text.removesuffix("\\$"), "dollar"
    if (found := _TEXT_AT_END.fullmatch(text)) and found[1].strip() and (named := unit_name(found[2])):
        return found[1].strip(), named
    if (found := _BARE_WORDS.fullmatch(text)) and (named := unit_name(found[2])):
        glued = text[len(found[1])] != " "
        if found[2].lower() in KNOWN or (not glued and all(map(_is_english, found[2].split()))):
            return found[1].strip(), named
    return text.strip(), unit


def _is_english(word: str) -> bool:
    """False for what may be a product of letters: `5 xy` is no five of anything."""
    return word.lower() in _SHORT or (len(word) >= 4 and _VOWEL.search(word) is not None)


def unit_name(words: str) -> str:
    """The unit `words` name: a known spelling, "other" for any plain words, "" when they are no unit."""
    plain = words.strip().lower()
    if not _WORDS.fullmatch(plain):
        return ""
    parts = plain.replace(".", "").replace("-", " ").split()
    if _NO_UNIT.intersection(parts):
        return ""
    parts = [part for part in parts if part not in ("square", "sq", "cubic")]
    return KNOWN.get(parts[0], "other") if len(parts) == 1 else "other"
