"""The string verifier: the reply must be one of the accepted texts."""

from __future__ import annotations

import re
import string as ascii_characters
from collections.abc import Callable
from typing import Any

from posttrain.records import Score
from posttrain.rewards.verifier import verifier

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", ascii_characters.punctuation)


def _exact(text: str) -> str:
    return text.strip()


def _case(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> str:
    """SQuAD's normalisation (arXiv:1606.05250): lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


NORMALISE: dict[str, Callable[[str], str]] = {"exact": _exact, "case": _case, "words": _words}

_SQUAD = {"value": ["Paris", "the city of Paris"], "normalise": "words"}
_AFTER = {"value": "yes", "normalise": "case", "after": "The answer is:"}

ACCEPTS: tuple[tuple[str, Any], ...] = (
    ("Paris", "Paris"),
    ("  Paris\n", "Paris"),
    ("Paris", " Paris "),
    ("Paris", ["London", "Paris"]),
    ("London", ["London", "Paris"]),
    ("a b", "a b"),
    ("42", "42"),
    ("π", "π"),
    ("Paris.", "Paris."),
    ("line one\nline two", "line one\nline two"),
    ("Paris", {"value": "Paris"}),
    ("PARIS", {"value": "paris", "normalise": "case"}),
    ("two  words", {"value": "Two words", "normalise": "case"}),
    ("STRASSE", {"value": "straße", "normalise": "case"}),
    ("Paris.", _SQUAD),
    ("the Paris!", _SQUAD),
    ("City of Paris", _SQUAD),
    ("An apple", {"value": "apple", "normalise": "words"}),
    ("The answer is: yes", _AFTER),
    ("The answer is: no. No: The answer is: Yes", _AFTER),
    ("yes", {"value": ["yes", "y"], "normalise": "exact"}),
)
REJECTS: tuple[tuple[str, Any], ...] = (
    ("", "Paris"),
    ("   ", "Paris"),
    ("paris", "Paris"),
    ("Paris.", "Paris"),
    ("It is Paris", "Paris"),
    ("Paris London", ["London", "Paris"]),
    ("Rome", ["London", "Paris"]),
    ("a  b", "a b"),
    ("420", "42"),
    ("ab", "a b"),
    ("Par", "Paris"),
    ("PARIS", {"value": "Paris"}),
    ("Pariss", {"value": "paris", "normalise": "case"}),
    ("paris!", {"value": "paris", "normalise": "case"}),
    ("two words more", {"value": "two words", "normalise": "case"}),
    ("London", _SQUAD),
    ("Paris or London", _SQUAD),
    ("...", _SQUAD),
    ("yes", _AFTER),
    ("The answer is: no", _AFTER),
    ("The answer is: yes. The answer is: no", _AFTER),
    ("the", {"value": "apple", "normalise": "words"}),
)


@verifier("string", accepts=ACCEPTS, rejects=REJECTS)
def string(completion: str, ground_truth: Any) -> Score:
    """1.0 when the whole reply is an accepted text.

    `ground_truth` is a text, a list of texts, or {"value": text or list, "normalise": "exact" | "case" |
    "words", "after": marker}. Outer white space never counts. With `after`, only what follows its last
    occurrence is read. Raises ValueError for any other ground truth.
    """
    accepted, normalise, after = _read(ground_truth)
    text = completion
    if after is not None:
        _, marker, text = completion.rpartition(after)
        if not marker:
            return Score(0.0, "unparseable", f"the reply does not say {after!r}")
    given = normalise(text)
    if not given:
        return Score(0.0, "unparseable", "the reply is empty")
    if any(given == normalise(value) for value in accepted):
        return Score(1.0, "correct", "the reply is an accepted text")
    return Score(0.0, "wrong", f"{given[:60]!r} is not an accepted text")


def _read(ground_truth: Any) -> tuple[list[str], Callable[[str], str], str | None]:
    """The accepted texts, how to normalise, and the marker, out of a ground truth."""
    rule = "exact"
    after = None
    value = ground_truth
    if isinstance(ground_truth, dict):
        unknown = ground_truth.keys() - {"value", "normalise", "after"}
        if unknown or "value" not in ground_truth:
            raise ValueError(
                f"a string ground truth has value, normalise and after, not {sorted(ground_truth)}"
            )
        value = ground_truth["value"]
        rule = ground_truth.get("normalise", "exact")
        after = ground_truth.get("after")
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(v, str) for v in values):
        raise ValueError(f"a string ground truth holds texts, not {value!r}")
    if not isinstance(rule, str) or rule not in NORMALISE:
        raise ValueError(f"normalise is one of {', '.join(NORMALISE)}, not {rule!r}")
    if after is not None and (not isinstance(after, str) or not after):
        raise ValueError(f"after is a text that comes before the answer, not {after!r}")
    normalise = NORMALISE[rule]
    if not all(normalise(v) for v in values):
        raise ValueError(f"nothing is left of an accepted text after normalising: {values!r}")
    return list(values), normalise, after
