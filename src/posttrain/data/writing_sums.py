"""Small additions and subtractions for the quickstart's tasks."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.data.writing_topics import Split

_PLUS = (
    "What is {a} + {b}?",
    "Calculate {a} + {b}.",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "{a} + {b} = ?",
)
_MINUS = (
    "What is {a} - {b}?",
    "Calculate {a} - {b}.",
    "How much is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "{a} - {b} = ?",
)
_FORMS = 3
"""Each pair of operands makes low + high, high + low and high - low."""


def operand_pairs(split: Split, digits: int) -> tuple[tuple[int, int], ...]:
    """The pairs (low, high), low < high, of numbers with `digits` digits: about a quarter is held out."""
    numbers = range(10 ** (digits - 1), 10**digits)
    return tuple(
        (low, high)
        for low in numbers
        for high in numbers
        if low < high and ((3 * low + 5 * high) % 4 == 0) == (split == "heldout")
    )


@dataclass(frozen=True, slots=True)
class SumPool:
    """Every question over `pairs` of operands: `len(pool)` of them, all different."""

    pairs: tuple[tuple[int, int], ...]
    verifier = "gsm8k"

    def __len__(self) -> int:
        return len(self.pairs) * _FORMS * len(_PLUS)

    def __getitem__(self, index: int) -> tuple[str, str]:
        """The prompt and the answer of question `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        index, wording = divmod(index, len(_PLUS))
        pair, form = divmod(index, _FORMS)
        low, high = self.pairs[pair]
        if form == 2:
            return _MINUS[wording].format(a=high, b=low), str(high - low)
        first, second = (low, high) if form == 0 else (high, low)
        return _PLUS[wording].format(a=first, b=second), str(low + high)
