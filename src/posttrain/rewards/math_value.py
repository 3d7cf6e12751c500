"""Values of expression trees: exact where they are rational, else to sixty digits; bounded in size."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

from posttrain.rewards.math_expression import Node

DIGITS = 60
_MOST_BITS = 1 << 17
_MOST_FACTORIAL = 5000


class TooLarge(ValueError):
    """The value needs more digits than any honest answer."""


class Undefined(ValueError):
    """The expression has no value there."""


def exact_value(node: Node) -> Fraction | None:
    """The rational value; None when the tree holds a symbol or is not (visibly) rational.

    Raises TooLarge for towers such as 9^9^9, Undefined for division by zero.
    """
    operation = node.operation
    if operation == "number":
        return node.value
    if operation in ("symbol", "pi", "euler", "imaginary", "infinity"):
        return None
    values = [exact_value(argument) for argument in node.arguments]
    if any(value is None for value in values):
        return None
    numbers = [value for value in values if value is not None]
    result = _rational(operation, numbers)
    if result is not None and result.numerator.bit_length() + result.denominator.bit_length() > _MOST_BITS:
        raise TooLarge("the value is too large")
    return result


def _rational(operation: str, values: list[Fraction]) -> Fraction | None:
    if operation in ("factorial", "binomial"):
        return _counted(operation, values[0], values[-1])
    exact = _EXACT.get(operation)
    return exact(*values) if exact else None


def _rational_quotient(over: Fraction, under: Fraction) -> Fraction:
    if under == 0:
        raise Undefined("division by zero")
    return over / under


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return _rational_root(base) if exponent == Fraction(1, 2) else None
    power = exponent.numerator
    if base == 0 and power <= 0:
        raise Undefined("zero to a power that is not positive")
    if abs(base) in (0, 1):
        return base if power % 2 else abs(base)
    if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(power) > _MOST_BITS:
        raise TooLarge("the power is too large")
    return base**power


def _rational_root(value: Fraction) -> Fraction | None:
    if value < 0:
        return None
    over, under = math.isqrt(value.numerator), math.isqrt(value.denominator)
    return (
        Fraction(over, under)
        if over * over == value.numerator and under * under == value.denominator
        else None
    )


def _counted(operation: str, first: Fraction, second: Fraction) -> Fraction | None:
    if first.denominator != 1 or second.denominator != 1 or first < 0 or second < 0:
        return None
    if first > _MOST_FACTORIAL or second > _MOST_FACTORIAL:
        raise TooLarge("the factorial is too large")
    if operation == "factorial":
        return Fraction(math.factorial(first.numerator))
    return Fraction(math.comb(first.numerator, second.numerator))


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": _rational_quotient,
    "negate": operator.neg,
    "absolute": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceiling": lambda a: Fraction(math.ceil(a)),
    "degree": lambda a: a,
    "percent": lambda a: a / 100,
    "power": _rational_power,
    "root": _rational_root,
}


@cache
def _context() -> Any:
    """A multiple-precision context of our own: mpmath's global precision stays as it was."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = DIGITS
    return context


def sample_point(names: frozenset[str], attempt: int) -> dict[str, Any]:
    """A fixed pseudo-random value for each symbol; positive at the first three attempts, then of any sign."""
    point = {}
    for name in names:
        digest = hashlib.sha256(f"{attempt}/{name}".encode()).digest()
        size = Fraction(int.from_bytes(digest[:6], "big"), 1 << 48) * 3 + Fraction(1, 4)
        sign = -1 if attempt >= 3 and digest[6] % 2 else 1
        point[name] = _context().mpf(sign * size.numerator) / size.denominator
    return point


def numeric_value(node: Node, point: Mapping[str, Any], *, in_trigonometry: bool = False) -> Any:
    """The value at `point` to sixty digits, an mpmath number; raises TooLarge or Undefined."""
    context = _context()
    operation = node.operation
    if operation == "number" and node.value is not None:
        return context.mpf(node.value.numerator) / node.value.denominator
    if operation == "symbol":
        return point[node.name]
    constants = {"pi": context.pi, "euler": context.e, "imaginary": context.j, "infinity": context.inf}
    if operation in constants:
        return +constants[operation]
    trigonometric = operation in _TRIGONOMETRIC
    values = [
        numeric_value(a, point, in_trigonometry=trigonometric or in_trigonometry) for a in node.arguments
    ]
    if operation == "degree":
        return values[0] * context.pi / 180 if in_trigonometry else values[0]
    _bound(operation, values)
    try:
        value = _NUMERIC[operation](context, *values)
    except (ZeroDivisionError, ValueError, OverflowError) as fault:
        raise Undefined(f"{operation} has no value there") from fault
    if context.isnan(value):
        raise Undefined(f"{operation} has no value there")
    return value


def _bound(operation: str, values: list[Any]) -> None:
    """Refuse what mpmath would take long over: the cost grows with the magnitude."""
    context = _context()
    if operation == "power":
        size = abs(values[0])
        log_size = abs(context.log(size)) if size else 0
        if abs(values[1]) * (log_size + 1) > 10**6:
            raise TooLarge("the power is too large")
    elif operation in _SENSITIVE and abs(values[0]) > _SENSITIVE[operation]:
        raise TooLarge(f"the argument of {operation} is too large")


_TRIGONOMETRIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_SENSITIVE = {
    **dict.fromkeys((*_TRIGONOMETRIC, "arctan"), 10**40),
    **dict.fromkeys(("exp", "sinh", "cosh", "tanh"), 10**5),
    **dict.fromkeys(("factorial", "binomial"), _MOST_FACTORIAL),
}
_NUMERIC: dict[str, Any] = {
    "add": lambda c, a, b: a + b,
    "subtract": lambda c, a, b: a - b,
    "multiply": lambda c, a, b: a * b,
    "divide": lambda c, a, b: a / b,
    "negate": lambda c, a: -a,
    "absolute": lambda c, a: abs(a),
    "floor": lambda c, a: c.floor(a),
    "ceiling": lambda c, a: c.ceil(a),
    "percent": lambda c, a: a / 100,
    "power": lambda c, a, b: c.power(a, b),
    "root": lambda c, a: c.sqrt(a),
    "factorial": lambda c, a: c.factorial(a),
    "binomial": lambda c, a, b: c.binomial(a, b),
    "sin": lambda c, a: c.sin(a),
    "cos": lambda c, a: c.cos(a),
    "tan": lambda c, a: c.tan(a),
    "cot": lambda c, a: c.cot(a),
    "sec": lambda c, a: c.sec(a),
    "csc": lambda c, a: c.csc(a),
    "arcsin": lambda c, a: c.asin(a),
    "arccos": lambda c, a: c.acos(a),
    "arctan": lambda c, a: c.atan(a),
    "sinh": lambda c, a: c.sinh(a),
    "cosh": lambda c, a: c.cosh(a),
    "tanh": lambda c, a: c.tanh(a),
    "exp": lambda c, a: c.exp(a),
    "ln": lambda c, a: c.log(a),
    "log": lambda c, a, b=10: c.log(a, b),
}


def nearly_equal(a: Any, b: Any) -> bool:
    """Equal to forty-five digits: far beyond what a rounded answer could reach by chance or by intent."""
    context = _context()
    if context.isinf(a) or context.isinf(b):
        return bool(a == b)
    difference = abs(a - b)
    return bool(
        difference <= context.mpf(10) ** -45 * max(abs(a), abs(b)) or difference <= context.mpf(10) ** -55
    )


def is_real(value: Any) -> bool:
    """True when the imaginary part is zero to forty-five digits."""
    return not hasattr(value, "imag") or bool(
        abs(value.imag) <= _context().mpf(10) ** -45 * max(1, abs(value))
    )
