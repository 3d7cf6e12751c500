r"""A strict reader of one scalar expression. What it does not know it refuses; it never skips.

Grammar: sums, products (also implied), quotients, powers, factorials, brackets, absolute values, floors,
roots, binomials, the usual functions, Latin and Greek letters with an index. `i`, `e` and `\pi` are the
constants. An integer before a fraction of integers is a mixed number. Two numbers side by side are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_FUNCTION_WORDS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp"
FUNCTIONS = frozenset(_FUNCTION_WORDS.split())
"""Read as functions with and without the backslash."""
_PLAIN_WORDS = sorted((*FUNCTIONS, "sqrt", "pi", "infinity", "infty", "binom"), key=len, reverse=True)
_TOKEN = re.compile(
    r"\s*(?:(\\[A-Za-z]+|\\.)|(\d+(?:\.\d+)?|\.\d+)"
    rf"|((?:{'|'.join(_PLAIN_WORDS)})(?![A-Za-z])|[A-Za-z])|(\*\*|\S))"
)
_GREEK_WORDS = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma "
    "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
_GREEK = frozenset("\\" + name for name in _GREEK_WORDS.split())
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "|": "|"}
_MOST_NESTED = 40
_MOST_TOKENS = 400


class Unreadable(ValueError):
    """The text is not an expression this grammar knows."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operation and what it works on; numbers carry `value`, symbols their `name`."""

    operation: str
    arguments: tuple[Node, ...] = ()
    value: Fraction | None = None
    name: str = ""


def parse_expression(text: str) -> Node:
    """The tree of `text`, spelled as `normal_latex` spells it; raises Unreadable for anything odd."""
    parser = _Parser(text)
    node = parser.sum()
    if parser.here:
        raise Unreadable(f"{parser.here!r} is out of place")
    return node


def symbols(node: Node) -> frozenset[str]:
    """The names of the free symbols."""
    if node.operation == "symbol":
        return frozenset((node.name,))
    return frozenset().union(*map(symbols, node.arguments))


class _Parser:
    """Recursive descent over the tokens; `here` is the current one, "" at the end."""

    def __init__(self, text: str) -> None:
        self.tokens = [found[0].strip() for found in _TOKEN.finditer(text)]
        if len(self.tokens) > _MOST_TOKENS:
            raise Unreadable("the expression is too long")
        self.at = 0
        self.nested = 0
        self.in_bars = 0

    @property
    def here(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.here
        if not token:
            raise Unreadable("the expression breaks off")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable(f"{token!r} is missing")

    def sum(self) -> Node:
        self.nested += 1
        if self.nested > _MOST_NESTED:
            raise Unreadable("the expression is nested too deeply")
        node = self.product()
        while self.here in ("+", "-"):
            operation = "add" if self.take() == "+" else "subtract"
            node = Node(operation, (node, self.product()))
        self.nested -= 1
        return node

    def product(self) -> Node:
        if self.here in ("+", "-"):
            sign = self.take()
            node = self.product_of(self.signed())
            return Node("negate", (node,)) if sign == "-" else node
        return self.product_of(self.signed())

    def signed(self) -> Node:
        """A factor that may carry its own sign, as in `2*-3`; one sign only."""
        if self.here == "-":
            self.take()
            return Node("negate", (self.power(),))
        return self.power()

    def product_of(self, node: Node) -> Node:
        while True:
            if self.here in ("*", "/"):
                operation = "multiply" if self.take() == "*" else "divide"
                node = Node(operation, (node, self.signed()))
            elif self.starts_factor():
                after_number = self.tokens[self.at - 1][-1].isdigit()
                if after_number and self.here[0] in ".0123456789":
                    raise Unreadable("two numbers stand side by side")
                may_be_mixed = after_number and _is_whole(node) and self.here == "\\frac"
                factor = self.power()
                mixed = may_be_mixed and _is_plain_fraction(factor)
                node = Node("add" if mixed else "multiply", (node, factor))
            else:
                return node

    def starts_factor(self) -> bool:
        token = self.here
        if token == "|":
            return not self.in_bars and self.at > 0 and not self.tokens[self.at - 1][-1].isdigit()
        return bool(token) and (
            token[0].isalnum()
            or token[0] == "."
            or token
            in ("(", "[", "{", "\\lfloor", "\\lceil", "\\frac", "\\sqrt", "\\binom", "\\pi", "\\infty")
            or token in _GREEK
            or token.lstrip("\\") in FUNCTIONS
        )

    def power(self) -> Node:
        node = self.postfixed()
        if self.here in ("^", "**"):
            self.take()
            exponent = self.exponent()
            node = Node("power", (node, exponent))
            if self.here in ("^", "**"):
                raise Unreadable("a power of a power needs brackets")
            node = self.postfixes(node)
        return node

    def exponent(self) -> Node:
        if self.here == "-":
            self.take()
            return Node("negate", (self.postfixed(),))
        return self.postfixed()

    def postfixed(self) -> Node:
        return self.postfixes(self.atom())

    def postfixes(self, node: Node) -> Node:
        while self.here in ("!", "\\degree", "\\%"):
            node = Node({"!": "factorial", "\\degree": "degree", "\\%": "percent"}[self.take()], (node,))
        return node

    def atom(self) -> Node:
        token = self.take()
        name = token.lstrip("\\")
        if token[0] in ".0123456789":
            return Node("number", value=Fraction(token)) if len(token) < 2000 else _refuse(token)
        if token in _CLOSING:
            return self.bracketed(token)
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("frac", "binom"):
            over = self.argument()
            return Node("divide" if name == "frac" else "binomial", (over, self.argument()))
        if name == "sqrt":
            return self.root()
        if name in ("pi", "infty", "infinity"):
            return Node("pi" if name == "pi" else "infinity")
        if (token.isalpha() and token.isascii()) or token in _GREEK:
            return self.symbol(token)
        return _refuse(token)

    def bracketed(self, opening: str) -> Node:
        bars = self.in_bars
        self.in_bars = 1 if opening == "|" else 0
        node = self.sum()
        self.expect(_CLOSING[opening])
        self.in_bars = bars
        operation = {"|": "absolute", "\\lfloor": "floor", "\\lceil": "ceiling"}.get(opening)
        return Node(operation, (node,)) if operation else node

    def argument(self) -> Node:
        r"""A braced group, or one character as in `\frac12`."""
        if self.here == "{":
            self.take()
            return self.bracketed("{")
        token = self.here
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.atom()

    def root(self) -> Node:
        if self.here == "[":
            self.take()
            degree = self.bracketed("[")
            return Node(
                "power", (self.argument(), Node("divide", (Node("number", value=Fraction(1)), degree)))
            )
        return Node("root", (self.argument(),))

    def function(self, name: str) -> Node:
        base = None
        exponent = None
        if self.here == "_":
            self.take()
            base = self.argument()
        if self.here == "^":
            self.take()
            exponent = self.exponent()
        inner = self.function_argument()
        node = Node(name, (inner,) if base is None else (inner, base))
        if exponent is None:
            return node
        if exponent.operation == "negate" and name in ("sin", "cos", "tan"):  # the inverse function
            return Node("arc" + name, (inner,))
        return Node("power", (node, exponent))

    def function_argument(self) -> Node:
        r"""`(x+1)`, or a run of factors up to the next sign or function: `\sin 2x \cos y`."""
        if self.here in ("(", "{", "["):
            return self.postfixed()
        node = self.signed()
        while self.starts_factor() and self.here.lstrip("\\") not in FUNCTIONS:
            if self.here in ("(", "["):
                break
            node = Node("multiply", (node, self.power()))
        if self.here == "/" and node.operation in ("symbol", "pi", "number"):
            self.take()
            node = Node("divide", (node, self.power()))
        return node

    def symbol(self, token: str) -> Node:
        name = token
        if self.here == "_":
            self.take()
            name += "_" + self.index()
        while self.here == "'":
            name += self.take()
        if name == "i":
            return Node("imaginary")
        if name == "e":
            return Node("euler")
        return Node("symbol", name=name)

    def index(self) -> str:
        if self.here != "{":
            return self.take()
        self.take()
        parts = []
        while self.here != "}":
            parts.append(self.take())
        self.take()
        return "".join(parts)


def _refuse(token: str) -> Node:
    raise Unreadable(f"{token[:20]!r} is not understood")


def _is_whole(node: Node) -> bool:
    return node.value is not None and node.value.denominator == 1


def _is_plain_fraction(node: Node) -> bool:
    return node.operation == "divide" and all(_is_whole(part) for part in node.arguments)
