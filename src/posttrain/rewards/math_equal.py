"""Whether two answers are the same: structure first, then exact values, then values to sixty digits."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from posttrain.rewards.math_answer import (
    Answer,
    Based,
    Collection,
    Equation,
    Matrix,
    Opaque,
    Row,
    Scalar,
    Word,
)
from posttrain.rewards.math_expression import Node, symbols
from posttrain.rewards.math_value import (
    Undefined,
    exact_value,
    is_real,
    nearly_equal,
    numeric_value,
    sample_point,
)

_MOST_ITEMS = 64
_ATTEMPTS = 8
_POINTS_WANTED = 3
_ROUNDED_DECIMALS = 4
"""A label with this many decimals may stand for the irrational number that rounds to it."""


def same_answer(truth: Answer, given: Answer) -> bool:
    """True when `given` answers what `truth` answers. The order matters only for rounded labels.

    Raises TooLarge when a value is absurdly large.
    """
    if isinstance(truth, Equation) or isinstance(given, Equation):
        return _same_equation(truth, given)
    if isinstance(truth, Collection) or isinstance(given, Collection):
        return _same_collection(truth, given)
    if isinstance(truth, Matrix) or isinstance(given, Matrix):
        return _same_matrix(truth, given)
    if isinstance(truth, Row) and isinstance(given, Row):
        return _same_row(truth, given)
    if isinstance(truth, Word) or isinstance(given, Word):
        return _same_word(truth, given)
    if isinstance(truth, Scalar) and isinstance(given, Scalar):
        return _same_scalar(truth, given)
    return isinstance(truth, Based | Opaque) and truth == given


def _all_same(truths: Sequence[Answer], givens: Sequence[Answer]) -> bool:
    return len(truths) == len(givens) and all(map(same_answer, truths, givens))


def _same_in_any_order(truths: Sequence[Answer], givens: Sequence[Answer]) -> bool:
    if len(truths) != len(givens) or len(truths) > _MOST_ITEMS:
        return False
    left = list(givens)
    for truth in truths:
        match = next((given for given in left if same_answer(truth, given)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_row(truth: Row, given: Row) -> bool:
    if (truth.opening, truth.closing) != (given.opening, given.closing):
        return False
    if truth.variable and given.variable and truth.variable != given.variable:
        return False
    return _all_same(truth.items, given.items)


def _same_collection(truth: Answer, given: Answer) -> bool:
    """A list may be written as a set when it has two items or more; a list of intervals as a union."""
    if not isinstance(truth, Collection) or not isinstance(given, Collection):
        return False
    if truth.kind != given.kind:
        kinds = {truth.kind, given.kind}
        items = (*truth.items, *given.items)
        if "union" in kinds and not all(isinstance(item, Row | Collection) for item in items):
            return False
    return _same_in_any_order(truth.items, given.items)


def _same_matrix(truth: Answer, given: Answer) -> bool:
    """Matrices cell by cell; a single column or row may also be written as a tuple."""
    if isinstance(truth, Matrix) and isinstance(given, Matrix):
        return len(truth.rows) == len(given.rows) and all(map(_all_same, truth.rows, given.rows))
    left, right = _vector(truth), _vector(given)
    return left is not None and right is not None and _all_same(left, right)


def _vector(answer: Answer) -> tuple[Answer, ...] | None:
    if isinstance(answer, Row) and (answer.opening, answer.closing) == ("(", ")") and not answer.variable:
        return answer.items
    if isinstance(answer, Matrix) and len(answer.rows) == 1:
        return answer.rows[0]
    if isinstance(answer, Matrix) and len(answer.rows[0]) == 1:
        return tuple(row[0] for row in answer.rows)
    return None


def _same_word(truth: Answer, given: Answer) -> bool:
    if isinstance(truth, Word) and isinstance(given, Word) and truth.text == given.text:
        # as products of letters, AB and ab differ; as words they do not
        products = truth.node is not None and given.node is not None
        if not products or len(truth.text) > 3:
            return True
    nodes = [answer.node for answer in (truth, given) if isinstance(answer, Word | Scalar)]
    if len(nodes) != 2 or nodes[0] is None or nodes[1] is None:
        return False
    return same_value(nodes[0], nodes[1])


def _same_equation(truth: Answer, given: Answer) -> bool:
    if isinstance(truth, Equation) and isinstance(given, Equation):
        if truth.left == given.left and _all_same(truth.sides[1:], given.sides[1:]):
            return True
        if len(truth.sides) == 2 and len(given.sides) == 2:
            return _same_zeros(truth.sides, given.sides)
        return False
    if isinstance(given, Equation):
        return all(same_answer(truth, side) for side in _answer_sides(given))
    return isinstance(truth, Equation) and all(same_answer(side, given) for side in _answer_sides(truth))


def _answer_sides(equation: Equation) -> tuple[Answer, ...]:
    """The sides that state the answer: all but a first one that merely names it, as `x`, `f(3)` or `abc`."""
    name = equation.left
    for index in ("_{", "_", "("):
        start = name.find(index)
        if start > 0:
            end = name.find({"_{": "}", "_": "", "(": ")"}[index], start) if index != "_" else start + 1
            name = name[:start] + name[end + 1 :]
    names = any(character.isalpha() for character in name) and not any(c.isdigit() for c in name)
    return equation.sides[1:] if names else equation.sides


def _same_zeros(truth: Sequence[Answer], given: Sequence[Answer]) -> bool:
    """True when one equation is a constant multiple of the other: `left - right` in a fixed ratio."""
    nodes = [side.node for side in (*truth, *given) if isinstance(side, Scalar) and side.node is not None]
    if len(nodes) != 4:
        return False
    left, right = Node("subtract", (nodes[0], nodes[1])), Node("subtract", (nodes[2], nodes[3]))
    names = symbols(left) | symbols(right)
    if not names or symbols(left) != symbols(right):
        return False
    values = _values(left, right, names)
    if len(values) < _POINTS_WANTED or any(nearly_equal(a, 0) or nearly_equal(b, 0) for a, b in values):
        return False
    a0, b0 = values[0]
    return all(nearly_equal(a * b0, b * a0) for a, b in values[1:])


def _same_scalar(truth: Scalar, given: Scalar) -> bool:
    if truth.unit != given.unit and "other" not in (truth.unit, given.unit) and truth.unit and given.unit:
        return False
    if same_value(truth.node, given.node):
        return True
    if truth.percent != given.percent:
        whole, part = (truth.node, given.node) if truth.percent else (given.node, truth.node)
        return same_value(Node("percent", (whole,)), part)
    return False


def same_value(truth: Node, given: Node) -> bool:
    """True when both expressions have one value: exactly where rational, else at every sampled point."""
    if truth == given:
        return True
    exact_truth, exact_given = _exact(truth), _exact(given)
    if exact_truth is not None and exact_given is not None:
        return exact_truth == exact_given
    names = symbols(truth) | symbols(given)
    values = _values(truth, given, names, equal_only=True)
    if not values or (names and len(values) < _POINTS_WANTED):
        return False
    if all(nearly_equal(a, b) for a, b in values):
        return True
    return not names and exact_given is None and _rounds_to(values[0][1], truth)


def _exact(node: Node) -> Fraction | None:
    try:
        return exact_value(node)
    except Undefined:
        return None


def _values(
    left: Node, right: Node, names: frozenset[str], *, equal_only: bool = False
) -> list[tuple[Any, Any]]:
    """Both values at the sampled points where both are defined, real ones alone when there are enough.

    With `equal_only` the first real point at which they differ ends the search with nothing.
    """
    real: list[tuple[Any, Any]] = []
    complex_: list[tuple[Any, Any]] = []
    # three positive points prove nothing about |x| and x, so all attempts are made
    for attempt in range(_ATTEMPTS if names else 1):
        point = sample_point(names, attempt)
        try:
            pair = numeric_value(left, point), numeric_value(right, point)
        except Undefined:
            continue
        if not is_real(pair[0]):
            complex_.append(pair)
            continue
        if equal_only and names and not nearly_equal(*pair):
            return []
        real.append(pair)
    enough = _POINTS_WANTED if names else 1
    return real if len(real) >= enough else real + complex_


def _rounds_to(value: Any, truth: Node) -> bool:
    """True when `truth` is a decimal of four places or more, and `value` rounds to it."""
    negative = truth.operation == "negate"
    number = truth.arguments[0] if negative else truth
    if number.operation != "number" or number.value is None or not is_real(value):
        return False
    decimals = _decimals(number.value)
    if decimals < _ROUNDED_DECIMALS:
        return False
    label = -number.value if negative else number.value
    difference = abs(value.real * label.denominator - label.numerator) * 2 * 10**decimals
    return bool(difference <= label.denominator)


def _decimals(value: Fraction) -> int:
    """Decimal places of a terminating decimal, at most 40."""
    return next((places for places in range(40) if (value * 10**places).denominator == 1), 40)
