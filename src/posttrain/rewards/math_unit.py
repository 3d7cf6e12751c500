"""Units after a number: `2\\text{ cm}`, `5 apples`, `\\$40`. They carry no value unless they contradict."""

from __future__ import annotations

import re

_SAME_UNIT = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "g": "gram gm", "kg": "kilogram", "lb": "pound",
    "oz": "ounce", "s": "sec second", "min": "minute", "h": "hr hour", "day": "", "week": "", "month": "", "year": "",
    "dollar": "usd", "cent": "", "euro": "", "degree": "", "radian": "rad", "mph": "", "l": "liter litre",
    "ml": "milliliter millilitre", "gallon": "", "acre": "",
}  # fmt: skip
KNOWN = {spelling: unit for unit, others in _SAME_UNIT.items() for spelling in (unit, *others.split())}
KNOWN |= {spelling + "s": unit for spelling, unit in KNOWN.items() if len(spelling) > 2}

_NO_UNIT = frozenset(
    "or and not no nor to than least most about approximately approx around between plus minus times over half "
    "hundred thousand million billion trillion dozen tenths hundredths percent if when for is are mod base "
    "sqrt pi infinity infty binom sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp".split()
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z.]*(?:[ -][A-Za-z][A-Za-z.]*){0,3}")
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
    for dollar in ("\\$",):
        if stripped.startswith(dollar):
            text, unit = sign + stripped.removeprefix(dollar), "dollar"
        elif stripped.endswith(dollar):
            text, unit = text.removesuffix(dollar), "dollar"
    if (found := _TEXT_AT_END.fullmatch(text)) and found[1].strip() and (named := unit_name(found[2])):
        return found[1].strip(), named
    if (found := _BARE_WORDS.fullmatch(text)) and (named := unit_name(found[2])):
        glued = text[len(found[1])] != " "
        if not glued or found[2].lower() in KNOWN:
            return found[1].strip(), named
    return text.strip(), unit


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
