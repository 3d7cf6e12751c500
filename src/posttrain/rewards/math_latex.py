r"""One spelling out of many: `\dfrac`, `\left`, `\!`, `−`, `∞`, `\mbox` and the like."""

from __future__ import annotations

import re

from posttrain.rewards.boxed import closing_brace
from posttrain.rewards.math_expression import FUNCTIONS

_TEXT_MACROS = "text|mbox|hbox|textrm|textnormal|textbf|textit|texttt|mathrm|operatorname|rm"
_TOKEN = re.compile(
    rf"""
    \\(?P<macro>{_TEXT_MACROS})\*?\s*\{{(?P<content>[^{{}}]*)\}}
  | \\(?P<skip>phantom|hspace|vspace|color)\s*\{{[^{{}}]*\}}
  | \\[A-Za-z]+\*?
  | \\.
  | \d+(?:\.\d+)?
  | \.\d+
  | [A-Za-z]+
  | \s+
  | .
    """,
    re.VERBOSE | re.DOTALL,
)

_FURNITURE = (
    "$ \\( \\) \\[ \\] \\! \\left \\right \\big \\Big \\bigg \\Bigg \\bigl \\bigr \\Bigl \\Bigr \\biggl "
    "\\biggr \\displaystyle \\textstyle \\scriptstyle \\limits \\mathbf \\mathit \\boldsymbol \\bm \\bf "
    "\\bold \\mathsf \\rm \\it \\phantom \\hfill \\middle \\allowbreak"
)
_DROPPED = frozenset(_FURNITURE.split())
_SPACES = frozenset(("\\ ", "\\,", "\\;", "\\:", "\\>", "\\quad", "\\qquad", "~", "\\\n", "\\\t"))
_SAME = {
    **dict.fromkeys(("\\dfrac", "\\tfrac", "\\cfrac"), "\\frac"),
    **dict.fromkeys(("\\dbinom", "\\tbinom", "\\choose"), "\\binom"),
    **dict.fromkeys(("\\leq", "\\leqslant", "≤", "⩽"), "\\le"),
    **dict.fromkeys(("\\geq", "\\geqslant", "≥", "⩾"), "\\ge"),
    **dict.fromkeys(("\\neq", "≠"), "\\ne"),
    **dict.fromkeys(("\\times", "\\cdot", "\\ast", "×", "·", "⋅", "∙", "∗"), "*"),
    **dict.fromkeys(("\\div", "÷", "∕", "⁄"), "/"),
    **dict.fromkeys(("−", "–", "－", "‐", "‑"), "-"),
    **dict.fromkeys(("\\lvert", "\\rvert", "\\vert", "\\mid"), "|"),
    **dict.fromkeys(("\\langle", "⟨"), "("),
    **dict.fromkeys(("\\rangle", "⟩"), ")"),
    **dict.fromkeys(("\\rightarrow", "\\to", "\\Rightarrow", "\\implies"), "\\to"),
    **dict.fromkeys(("\\varnothing", "∅"), "\\emptyset"),
    **dict.fromkeys(("≈", "\\simeq", "\\sim", "≃"), "\\approx"),
    **dict.fromkeys(("°", "\\degree", "\\degrees", "º"), "\\degree"),
    "\\lt": "<", "\\gt": ">", "\\lbrack": "[", "\\rbrack": "]", "\\lbrace": "\\{", "\\rbrace": "\\}",
    "\\lparen": "(", "\\rparen": ")", "%": "\\%", "∞": "\\infty", "π": "\\pi", "±": "\\pm", "∓": "\\mp",
    "∪": "\\cup", "∩": "\\cap", "∈": "\\in", "√": "\\sqrt", "θ": "\\theta", "α": "\\alpha", "β": "\\beta",
    "φ": "\\phi", "λ": "\\lambda", "²": "^{2}", "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "ℝ": "\\mathbb{R}", "\\R": "\\mathbb{R}",
    "\\reals": "\\mathbb{R}", "∖": "\\setminus", "€": "\\$", "£": "\\$", "∠": "\\angle",
}  # fmt: skip
_PLAIN = {"{,}": ",", "{-}": "-", "{+}": "+", "<=": "\\le", ">=": "\\ge"}
_DEGREE = re.compile(r"\^(?:\{\\circ\}|\\circ)")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_GROUPED_BY_SPACE = re.compile(r"(?<![\d.,] )(?<![\d.,])\d{1,3}(?: \d{3})+(?! ?\d)")
_BRACKET = re.compile(r"[(\[]|\\\{")
_JOINABLE = re.compile(r"[A-Za-z0-9]")


def normal_latex(raw: str) -> str:
    """One spelling for each answer; single spaces stay where they part words, numbers or commands."""
    out: list[str] = []
    spaced = False
    for found in _TOKEN.finditer(raw):
        token = found[0]
        if found["skip"] or token in _DROPPED:
            continue
        if token in _SPACES or token.isspace():
            spaced = True
            continue
        if macro := found["macro"]:
            token = _text(macro, found["content"])
            if not token:
                continue
        token = _SAME.get(token, token)
        # a letter after a command stays apart from it, were it only by a macro that is dropped
        apart = spaced or (bool(out) and out[-1][0] == "\\" and token[0].isalpha())
        if apart and out and _JOINABLE.match(token) and _JOINABLE.match(out[-1][-1]):
            out.append(" ")
        out.append(token)
        spaced = False
    text = _DEGREE.sub(r"\\degree", "".join(out))
    for spelling, plain in _PLAIN.items():
        text = text.replace(spelling, plain)
    return _bare(text)


def _text(macro: str, content: str) -> str:
    words = " ".join(content.replace("\\", " ").split())
    if macro in ("operatorname", "mathrm", "text", "rm") and words in FUNCTIONS:
        return "\\" + words
    words = words.rstrip(".,;:") if not words.lower().endswith(".m.") else words
    return f"\\text{{{words}}}" if words else ""


def _bare(text: str) -> str:
    """Without closing punctuation and without braces around the whole."""
    text = text.strip()
    while text and text[-1] in ".,;:" and not text.endswith("\\" + text[-1]):
        text = text[:-1].rstrip()
    while text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def join_thousands(text: str) -> str:
    """`1,000` and `1 000` as `1000`, where no bracket says that the comma parts coordinates."""
    if "," in text and not _BRACKET.search(text):
        text = _GROUPED.sub(lambda found: found[0].replace(",", ""), text)
    if " " in text:
        text = _GROUPED_BY_SPACE.sub(lambda found: found[0].replace(" ", ""), text)
    return text


def without_spaces(text: str) -> str:
    """The text as compared letter by letter."""
    return text.replace(" ", "")
