"""The gsm8k rule: properties over formats, and the order in which places are searched."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rewards.gsm8k import gsm8k

INTEGERS = st.integers(-(10**12), 10**12)
FORMATS = (
    "{n}",
    "{n:,}",
    "{n}.",
    "{n}.0",
    "{n}.00 dollars",
    "#### {n}",
    "Work 3 + 4.\n#### {n:,}\n",
    "The answer is {n}.",
    "The answer is {n} apples.",
    "So the final answer is **{n}**",
    "ANSWER: {n}",
    "x = {n}",
    "\\boxed{{{n}}}",
    "$\\boxed{{{n}\\text{{ cm}}}}$ because 1 + 1 = 2",
    "Total: {n} (see step 2)",
    "{n} %",
)


@given(n=INTEGERS, form=st.sampled_from(FORMATS))
def test_an_integer_is_known_in_every_format_and_its_neighbours_are_not(n, form):
    """Closes T48 for gsm8k."""
    reply = form.format(n=n)
    assert gsm8k(reply, str(n)).value == 1.0
    assert gsm8k(reply, n).value == 1.0
    assert gsm8k(reply, f"{n:,}").value == 1.0
    for other in (n + 1, n - 1, -n if n else 1, 10 * n + 1):
        assert gsm8k(reply, str(other)).verdict == "wrong"


@given(n=INTEGERS)
def test_signs_and_currencies_in_either_order(n):
    size = abs(n)
    sign = "-" if n < 0 else ""
    for reply in (f"It is {sign}${size}", f"It is ${sign}{size}", f"It is {sign.replace('-', '−')}{size} €"):
        assert gsm8k(reply, n).value == 1.0


@given(cents=st.integers(-(10**9), 10**9))
def test_decimals_are_compared_exactly(cents):
    value = Fraction(cents, 100)
    text = f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"
    assert gsm8k(f"The answer is {text}", str(value)).value == 1.0
    assert gsm8k(f"The answer is {text}", text + "000").value == 1.0
    assert gsm8k(f"The answer is {text}", str(value + Fraction(1, 10**9))).value == 0.0


@given(over=st.integers(0, 10**6), under=st.integers(1, 10**6))
def test_fractions_are_compared_exactly(over, under):
    value = Fraction(over, under)
    assert gsm8k(f"#### {over}/{under}", str(value)).value == 1.0
    assert gsm8k(f"\\boxed{{\\frac{{{over}}}{{{under}}}}}", str(value)).value == 1.0
    assert gsm8k(f"#### {over}/{under}", str(value + 1)).value == 0.0


@given(digits=st.text("٠١٢٣٤٥٦٧٨٩", min_size=1, max_size=9))
def test_digits_of_another_script(digits):
    assert gsm8k(digits, int(digits)).value == 1.0


@given(a=st.integers(0, 99), b=st.integers(0, 99))
def test_a_list_is_never_one_of_its_items(a, b):
    """Closes T49 for gsm8k."""
    for join in (",", ", ", " or ", " and ", ";", " "):
        reply = f"The answer is {a}{join}{b}"
        for label in {a, b, int(f"{a}{b}")} - ({a} if a == b else set()):
            if not (join in ", " and len(str(b)) == 3):
                assert gsm8k(reply, label).value == 0.0, reply


@given(text=st.text(max_size=200), label=INTEGERS)
def test_any_text_gets_a_verdict(text, label):
    score = gsm8k(text, label)
    assert score.verdict in ("correct", "wrong", "unparseable")
    assert score.value == (score.verdict == "correct")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("\\boxed{5} #### 6 The answer is 6. 6", "correct"),  # the box outranks all
        ("#### 5\nThe answer is 6. 6", "correct"),  # then the heading
        ("The answer is 5. I checked it 6 times", "correct"),  # then the words
        ("I checked it 6 times, so 5", "correct"),  # then the last number
        ("\\boxed{6} #### 5", "wrong"),
        ("#### 6\nThe answer is 5.", "wrong"),
        ("The answer is 6. So 5", "wrong"),
        ("\\boxed{} 5", "unparseable"),
        ("\\boxed{five} 5", "unparseable"),
        ("five", "unparseable"),
        ("The answer is 5*1", "unparseable"),
        ("The answer is 5 or 6", "wrong"),
    ],
)
def test_the_order_of_places(reply, verdict):
    assert gsm8k(reply, "5").verdict == verdict
