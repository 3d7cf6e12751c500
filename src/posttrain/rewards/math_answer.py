r"""The structure of an answer: number, word, tuple, interval, set, list, union, matrix, equation.

Reading the structure first is what keeps `5,7` from being 5 and `4=3` from being 3. What has no structure
we know is Opaque, and equals only its own spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.rewards.math_expression import Node, Unreadable, parse_expression
from posttrain.rewards.math_latex import join_thousands, normal_latex, without_spaces
from posttrain.rewards.math_unit import split_unit


@dataclass(frozen=True, slots=True)
class Scalar:
    """One expression, with the unit and percent sign that followed it."""

    node: Node
    unit: str = ""
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """A name or a word; `node` is the product of letters it could also be."""

    text: str
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a number base other than ten."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Row:
    """An ordered row in brackets: a point, a vector, an interval. Inequalities name the `variable`."""

    opening: str
    items: tuple[Answer, ...]
    closing: str
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """Things without order: a "list" by commas, a "set" in braces, a "union" of pieces."""

    kind: str
    items: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of cells."""

    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """Two or more sides; `left` is the first side's spelling."""

    left: str
    sides: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Text with no structure we know."""

    text: str


Answer = Scalar | Word | Based | Row | Collection | Matrix | Equation | Opaque

_MOST_NESTED = 8
_PIECE = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})?|\\.|.", re.DOTALL)
_OPENING = frozenset(("(", "[", "{", "\\{"))
_CLOSING = frozenset((")", "]", "}", "\\}"))
_OR = re.compile(r",? ?\\text\{,? ?(?:or|and)\}|,? (?:or|and) ")
_MEMBER = re.compile(r"[A-Za-z]\\in(?![A-Za-z]) ?(.+)", re.DOTALL)
_RELATION = re.compile(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>)")
_BASED = re.compile(r"(-?[0-9A-F]+(?:\.[0-9A-F]+)?)_(?:\{?(\d{1,2})\}?|\{\\text\{([a-z]+)\}\})")
_BASE_WORDS = "two three four five six seven eight nine ten"
_BASES = {name: str(base) for base, name in enumerate(_BASE_WORDS.split(), 2)}
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z]{2,}(?: [A-Za-z]+)*")
_WHOLE_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SYMBOL = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{\w+\}))?(?:\([A-Za-z]\))?")
_PLAIN_MIXED = re.compile(r"(-?\d+) (\d+)/(\d+)")
_REPEATING = re.compile(r"(-?)(\d{0,20})\.(\d{0,20})\\overline\{(\d{1,20})\}")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")


def read_answers(raw: str) -> list[Answer]:
    """The readings of a raw answer: one, or two where a comma may group thousands or part a list."""
    text = normal_latex(raw)
    joined = join_thousands(text)
    texts = [joined] if joined == text or " " in text[:1] else [joined, text]
    return [read_answer(spelling) for spelling in texts]


def read_answer(text: str, depth: int = 0) -> Answer:
    """The structure of `text`, spelled as `normal_latex` spells it."""
    text = text.strip()
    if depth > _MOST_NESTED or not text:
        return Opaque(without_spaces(text))
    for reader in (_read_words, _read_joined, _read_relation, _read_bracketed, _read_scalar):
        answer = reader(text, depth)
        if answer is not None:
            return answer
    return Opaque(without_spaces(text))


def _pieces(text: str) -> Iterator[tuple[str, int, int]]:
    """(token, its position, bracket depth before it); the depth is -1 once a bracket closes too many."""
    depth = 0
    position = 0
    while position < len(text):
        found = _PIECE.match(text, position)
        if found is None:
            return
        token = found[0]
        if token.startswith("\\") and token not in _OPENING and token not in _CLOSING:
            # a command keeps its first group only when that is \text or an environment
            if "{" in token and not token.startswith(("\\text{", "\\begin{", "\\end{")):
                token = token[: token.index("{")]
            yield token, position, depth + (1 if token.startswith("\\begin") else 0)
            depth += token.startswith("\\begin{") - token.startswith("\\end{")
        elif token in _CLOSING:
            depth -= 1
            yield token, position, depth
        else:
            yield token, position, depth
            depth += token in _OPENING
        if depth < 0:
            yield "", position, -1
            return
        position += len(token)


def split_top(text: str, separators: frozenset[str]) -> list[str] | None:
    """`text` cut at the separators outside all brackets; None when its brackets do not balance."""
    parts = []
    start = 0
    depth = 0
    for token, position, before in _pieces(text):
        if before < 0:
            return None
        depth = before + (token in _OPENING)
        if before == 0 and token in separators:
            parts.append(text[start:position])
            start = position + len(token)
    if depth != 0 and not text.rstrip().endswith(("}", ")", "]")):
        return None
    return [*parts, text[start:]]


def _read_words(text: str, depth: int) -> Answer | None:
    if found := _WHOLE_TEXT.fullmatch(text):
        inner = normal_latex(found[1])
        if _WORDS.fullmatch(inner) and not _OR.search(inner):
            return Word(_plain_word(inner))
        answer = read_answer(inner, depth + 1)
        return Word(_plain_word(found[1])) if isinstance(answer, Opaque) else answer
    if _WORDS.fullmatch(text) and not _OR.search(text):
        return Word(_plain_word(text), _node(text))
    return None


def _plain_word(text: str) -> str:
    return re.sub(r"[\s.]", "", text).casefold()


def _read_joined(text: str, depth: int) -> Answer | None:
    """Lists by commas, "or" and "and"; unions; both signs at once."""
    listed = split_top(_OR.sub(",", text), frozenset((",", ";")))
    if listed is None:
        return Opaque(without_spaces(text))
    if len(listed) > 1:
        items: list[Answer] = []
        for part in listed:
            item = read_answer(part, depth + 1)
            items.extend(item.items if isinstance(item, Collection) and item.kind == "list" else (item,))
        if any(isinstance(item, Opaque) and not item.text for item in items):
            return Opaque(without_spaces(text))
        return Collection("list", tuple(items))
    pieces = split_top(text, frozenset(("\\cup", "∪")))
    if pieces and len(pieces) > 1:
        return Collection("union", tuple(read_answer(piece, depth + 1) for piece in pieces))
    if len(_PLUS_MINUS.findall(text)) == 1 and not text.startswith(("(", "[", "\\{")) and "=" not in text:
        upper = text.replace("\\pm", "+").replace("\\mp", "-")
        lower = text.replace("\\pm", "-").replace("\\mp", "+")
        return Collection("list", (read_answer(upper, depth + 1), read_answer(lower, depth + 1)))
    return None


def _read_relation(text: str, depth: int) -> Answer | None:
    """Equations, inequalities as intervals, and `x \\in ...`."""
    if member := _MEMBER.fullmatch(text):
        return read_answer(member[1], depth + 1)
    sides = split_top(text, frozenset("="))
    if sides and len(sides) > 1:
        if any(side.rstrip()[-1:] in ("<", ">", "") or side[:1] in ("<", ">", "") for side in sides):
            return Opaque(without_spaces(text))
        return Equation(without_spaces(sides[0]), tuple(read_answer(side, depth + 1) for side in sides))
    if _RELATION.search(text):
        return _interval(_RELATION.split(text), depth) or Opaque(without_spaces(text))
    return None


def _interval(parts: list[str], depth: int) -> Answer | None:
    """The interval that `a < x <= b` or `x > a` says; None when it says no interval."""
    terms, relations = [part.strip() for part in parts[::2]], parts[1::2]
    if relations[0] in ("\\ge", ">"):
        terms.reverse()
        flip = {"\\ge": "\\le", ">": "<"}
        relations = [flip.get(relation, "") for relation in reversed(relations)]
    if not set(relations) <= {"<", "\\le"} or len(relations) > 2:
        return None
    named = [
        index
        for index, term in enumerate(terms)
        if _SYMBOL.fullmatch(term) and term not in ("\\pi", "\\infty")
    ]
    if len(named) != 1 or (len(terms) == 3 and named != [1]):
        return None
    below = "-\\infty" if named == [0] else terms[0]
    above = "\\infty" if named[0] == len(terms) - 1 else terms[-1]
    opening = "[" if named != [0] and relations[0] == "\\le" else "("
    closing = "]" if named[0] != len(terms) - 1 and relations[-1] == "\\le" else ")"
    ends = (read_answer(below, depth + 1), read_answer(above, depth + 1))
    return Row(opening, ends, closing, variable=without_spaces(terms[named[0]]))


def _read_bracketed(text: str, depth: int) -> Answer | None:
    """Tuples, intervals, sets and matrices, when one pair of brackets holds all of `text`."""
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[2], depth)
    if text == "\\mathbb{R}":
        return read_answer("(-\\infty,\\infty)", depth + 1)
    if text in ("\\emptyset", "\\{\\}"):
        return Collection("set", ())
    opening = next((mark for mark in ("\\{", "(", "[") if text.startswith(mark)), None)
    closing = next((mark for mark in ("\\}", ")", "]") if text.endswith(mark)), None)
    if opening is None or closing is None or not _holds_all(text, closing):
        return None
    inner = text[len(opening) : -len(closing)]
    if opening == "\\{" and closing == "\\}":
        items = split_top(inner, frozenset((",", ";"))) or []
        return Collection("set", _expanded(tuple(read_answer(item, depth + 1) for item in items)))
    parts = split_top(inner, frozenset(","))
    if "\\{" in (opening, closing) or "\\}" in (opening, closing) or parts is None:
        return Opaque(without_spaces(text))
    if len(parts) > 1:
        return Row(opening, tuple(read_answer(part, depth + 1) for part in parts), closing)
    if opening == "(" and closing == ")":
        return read_answer(inner, depth + 1)
    return Opaque(without_spaces(text))


def _expanded(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """`\\{1 \\pm a\\}` holds two things."""
    out: list[Answer] = []
    for item in items:
        out.extend(item.items if isinstance(item, Collection) and item.kind == "list" else (item,))
    return tuple(out)


def _holds_all(text: str, closing: str) -> bool:
    """True when the first bracket closes at the very end."""
    last = len(text) - len(closing)
    return all(
        not (token in _CLOSING and before == 0 and position != last)
        for token, position, before in _pieces(text)
    )


def _matrix(body: str, depth: int) -> Answer:
    rows = [row for row in body.split("\\\\") if row.strip()]
    cells = tuple(tuple(read_answer(cell, depth + 1) for cell in row.split("&")) for row in rows)
    if not cells or len({len(row) for row in cells}) != 1:
        return Opaque(without_spaces(body))
    return Matrix(cells)


def _read_scalar(text: str, depth: int) -> Answer | None:
    if based := _BASED.fullmatch(without_spaces(text)):
        return Based(based[1].lstrip("0") or "0", based[2] or _BASES.get(based[3], based[3]))
    bare, unit = split_unit(text)
    if mixed := _PLAIN_MIXED.fullmatch(bare):
        bare = f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    elif repeating := _REPEATING.fullmatch(bare):
        bare = _repeating_decimal(*repeating.groups())
    node = _node(bare)
    if node is None:
        return None
    percent = node.operation == "percent"
    negative = node.operation == "negate" and node.arguments[0].operation == "percent"
    if percent:
        node = node.arguments[0]
    elif negative:
        node = Node("negate", node.arguments[0].arguments)
    if node.operation == "degree":
        node, unit = node.arguments[0], "degree"
    return Scalar(node, unit, percent or negative)


def _repeating_decimal(sign: str, whole: str, fixed: str, repeated: str) -> str:
    r"""`0.1\overline{6}` as a fraction: (16 - 1) / 90."""
    over = int(whole + fixed + repeated) - int(whole + fixed or "0")
    return f"{sign}\\frac{{{over}}}{{{10 ** len(fixed) * (10 ** len(repeated) - 1)}}}"


def _node(text: str) -> Node | None:
    try:
        return parse_expression(text)
    except Unreadable:
        return None
