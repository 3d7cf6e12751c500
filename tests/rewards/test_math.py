"""The math rule: properties, symmetry, structure, and answers built to take for ever."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.math import math
from posttrain.rewards.math_expression import Unreadable, parse_expression
from posttrain.rewards.math_extract import final_answer
from posttrain.rewards.math_latex import normal_latex
from posttrain.rewards.math_value import TooLarge, exact_value

SMALL = st.integers(-50, 50)


def boxed(answer: object, truth: object) -> float:
    return math(f"so $\\boxed{{{answer}}}$", str(truth)).value


@given(n=st.integers(-(10**12), 10**12))
def test_an_integer_is_known_in_every_format_and_its_neighbours_are_not(n):
    """Closes T48 for math."""
    for form in (
        "{n}",
        "{n:,}",
        "{n}.0",
        "{n}.",
        "x={n}",
        "{n}\\text{{ cm}}",
        "{n}^\\circ",
        "{n}\\%",
        "\\frac{{{n}}}{{1}}",
    ):
        answer = form.format(n=n)
        assert boxed(answer, n) == 1.0
        assert boxed(n, answer) == 1.0
        assert boxed(answer, n + 1) == 0.0
        assert boxed(answer, f"{n},{n + 1}") == 0.0


@given(over=st.integers(-999, 999), under=st.integers(1, 999))
def test_fractions_in_every_spelling(over, under):
    value = Fraction(over, under)
    truth = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    for spelling in (
        f"{over}/{under}",
        f"\\dfrac{{{over}}}{{{under}}}",
        f"\\frac{{{2 * over}}}{{{2 * under}}}",
    ):
        assert boxed(spelling, truth) == 1.0
        assert boxed(truth, spelling) == 1.0
        assert boxed(spelling, f"{value.numerator + 1}/{value.denominator}") == 0.0


@given(a=SMALL, b=SMALL, c=SMALL)
def test_expanded_and_factored_polynomials_agree(a, b, c):
    """(x+a)(x+b) + c = x^2 + (a+b)x + ab + c, by hand."""
    factored = f"(x+({a}))(x+({b}))+({c})"
    assert boxed(factored, f"x^2+({a + b})x+({a * b + c})") == 1.0
    assert boxed(factored, f"x^2+({a + b})x+({a * b + c + 1})") == 0.0
    assert boxed(factored, f"x^2+({a + b + 1})x+({a * b + c})") == 0.0


@given(n=st.integers(1, 60), k=st.integers(1, 60))
def test_roots_are_taken_out_exactly(n, k):
    assert boxed(f"{n}\\sqrt{{{k}}}", f"\\sqrt{{{n * n * k}}}") == 1.0
    assert boxed(f"{n}\\sqrt{{{k}}}", f"\\sqrt{{{n * n * k + 1}}}") == 0.0


@given(items=st.lists(SMALL, min_size=2, max_size=5))
def test_lists_forget_their_order_and_tuples_keep_it(items):
    shuffled = random.Random(0).sample(items, len(items))
    assert boxed(", ".join(map(str, shuffled)), ", ".join(map(str, items))) == 1.0
    assert boxed(f"({', '.join(map(str, shuffled))})", f"({', '.join(map(str, items))})") == (
        shuffled == items
    )
    assert boxed(items[0], ", ".join(map(str, items))) == 0.0
    assert boxed(", ".join(map(str, items)), items[0]) == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[0,1)", "0\\le x<1"),
        ("(1,2)", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("x=5", "5"),
        ("\\infty", "∞"),
        ("y=2x+1", "2x-y+1=0"),
        ("50\\%", "50"),
    ],
)
def test_equal_answers_are_equal_in_either_order(one, other):
    """Closes T50: neither argument order nor its swap changes the verdict."""
    assert boxed(one, other) == boxed(other, one) == 1.0


def test_the_order_of_arguments_matters_for_rounded_labels_only():
    """Closes T50: a label may be a rounded value, a reply may not."""
    assert boxed("\\pi", "3.14159") == 1.0
    assert boxed("3.14159", "\\pi") == 0.0
    assert boxed("\\pi", "3.14158") == 0.0
    assert boxed("\\pi", "3.14") == 0.0


@pytest.mark.parametrize(
    "hostile", ["9^{9^{9^{9}}}", "(x+1)^{2000}", "(" * 300 + "1" + ")" * 300, "5000!!!", "\\sin(10^{9999})"]
)
def test_a_hostile_answer_is_refused_without_being_evaluated(hostile):
    """Closes T47, its first half; the pool's test is the second."""
    assert math(f"\\boxed{{{hostile}}}", "1").value == 0.0
    assert math(f"\\boxed{{{hostile}}}", "x+\\sqrt{2}").value == 0.0


@pytest.mark.parametrize(
    "text", ["5 7", "x+", "(x", "x)", "\\foo", "5|7", "1..2", "2^3^4", "\\frac{1}", "\\text{a}", ""]
)
def test_the_grammar_refuses_what_it_does_not_know(text):
    with pytest.raises(Unreadable):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", Fraction(-4)),
        ("2^{-2}", Fraction(1, 4)),
        ("1/2/3", Fraction(1, 6)),
        ("8-3-2", Fraction(3)),
        ("-1\\frac{4}{5}", Fraction(-9, 5)),
        ("2(3+4)", Fraction(14)),
        ("\\frac12", Fraction(1, 2)),
        ("\\binom{5}{2}", Fraction(10)),
        ("5!", Fraction(120)),
        ("|-3|", Fraction(3)),
        ("\\lfloor -\\frac{1}{2} \\rfloor", Fraction(-1)),
        ("\\lceil 1.2 \\rceil", Fraction(2)),
        ("\\sqrt{\\frac{4}{9}}", Fraction(2, 3)),
        ("(-1)^{101}", Fraction(-1)),
        ("0^{7}", Fraction(0)),
        ("\\sqrt{2}", None),
        ("x", None),
    ],
)
def test_exact_values_worked_by_hand(text, value):
    assert exact_value(parse_expression(text)) == value


def test_exact_values_are_bounded():
    with pytest.raises(TooLarge):
        exact_value(parse_expression("9^{9^{9}}"))


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("\\frac{1}{2}", "\\int_0^1 x dx", 1.0),
        ("\\frac{1}{3}", "\\int_0^1 x dx", 0.0),
        ("\\int_0^1 x dx", "\\frac{1}{2}", 0.0),  # an answer is to be worked out
        ("\\overline{AB}", "\\overline{CD}", 0.0),
    ],
)
def test_a_label_outside_the_grammar_goes_to_the_library(answer, truth, value):
    """The integral of x from 0 to 1 is one half."""
    assert boxed(answer, truth) == value


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("\\left( 1 , 2 \\right)", "(1,2)"),
        ("\\dfrac{1}{2}.", "\\frac{1}{2}"),
        ("30^{\\circ}", "30\\degree"),
        ("$\\$5$", "\\$5"),
        ("{{5}}", "5"),
        ("2 \\mbox{ cm }", "2\\text{cm}"),
        ("\\pi x", "\\pi x"),
        ("\\pi\\mathbf{x}", "\\pi{x}"),
        ("1 \\\\ 2", "1\\\\2"),
    ],
)
def test_one_spelling_for_many(raw, normal):
    assert normal_latex(raw) == normal


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("\\boxed{1} or \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{\\left\\{ 1 \\right.} }", "\\left\\{ 1 \\right."),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{}", None),
        ("The answer is 3. \\boxed{", None),
        ("The answer is 3.5. Good.", "3.5"),
        ("The answer is $x=3$ because $1+1=2$.", "$x=3$ because $1+1=2$"),
        ("Answer: **7**", "7"),
        ("Some work.\nSo it is \\(7\\).", "7"),
        ("Some work $5$.\nDone.", None),
        ("x = 5", "x = 5"),
        ("word " * 30, None),
    ],
)
def test_where_the_final_answer_stands(reply, answer):
    assert final_answer(reply) == answer


@given(text=st.text(alphabet="0123456789xi\\{}()[]^_,=<>|+-*/!$% \\frac\\sqrt\\text", max_size=60))
def test_any_text_gets_a_verdict(text):
    score = math("\\boxed{" + text + "}", "x^2+1")
    assert score.verdict in ("correct", "wrong", "unparseable")
    assert score.value == (score.verdict == "correct")
