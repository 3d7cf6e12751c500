"""What the math verifier must accept and reject."""

from __future__ import annotations


def _boxed(pairs: str) -> tuple[tuple[str, str], ...]:
    """One `reply = label` pair a line, parted by ` == `; the reply is put into a box."""
    lines = [line.strip() for line in pairs.strip().splitlines()]
    return tuple(
        (f"So $\\boxed{{{given}}}$.", truth) for given, truth in (line.split(" == ") for line in lines)
    )


ACCEPTS: tuple[tuple[str, str], ...] = (
    *_boxed(r"""
    1,000 == 1000
    1000 == 1,000
    10 == 10.0
    18,\!107 == 18107
    14{,}916 == 14916
    3/4 == \frac{3}{4}
    a/b == \frac{a}{b}
    \frac12 == \dfrac{1}{2}
    0.5 == \frac{1}{2}
    \frac{14}{3} == 4\frac{2}{3}
    1 3/4 == \frac{7}{4}
    (x+1)^2 == x^2+2x+1
    2+3 == 5
    3\sqrt{2} == \sqrt{18}
    \frac{\sqrt{2}+\sqrt{6}}{4} == \cos 15^\circ
    \frac{1}{\sqrt{2}} == \frac{\sqrt{2}}{2}
    50\% == 50
    50 == 50\%
    0.5 == 50\%
    30^\circ == 30
    30 == 30^{\circ}
    30° == 30^\circ
    x=5 == 5
    5 == x=5
    abc=3 == 3
    f(3) = 7 == 7
    x=2+3=5 == 5
    2\text{ cm} == 2
    2 == 2\text{ cm}
    2\text{ centimeters} == 2 \mbox{ cm}
    864 == 864 \mbox{ inches}^2
    \$76.80 == 76.8
    312\text{ dollars} == \$312
    5 apples == 5
    {-}3 == -3
    −3 == -3
    42. == 42
    \text{Tuesday} == Tuesday
    tuesday == \text{Tuesday}
    A == \text{(A)}
    \text{(C)} == C
    \text{B, E, G} == E, B, G
    x \in [1,2] == [1,2]
    [1,2] == x \in [1,2]
    \infty == ∞
    ∞ == \infty
    \begin{pmatrix} 1 \\ 2 \end{pmatrix} == (1,2)
    (1,2) == \begin{pmatrix} 1 \\ 2 \end{pmatrix}
    \begin{bmatrix} 1/2 & 0 \\ 0 & 1 \end{bmatrix} == \begin{pmatrix} \frac12 & 0 \\ 0 & 1 \end{pmatrix}
    [0,1) == 0\le x<1
    0\le x<1 == [0,1)
    x > 3 == (3,\infty)
    3 > x \ge 0 == [0,3)
    x<1 \text{ or } x>3 == (-\infty,1) \cup (3,\infty)
    (3,\infty) \cup (-\infty,1) == (-\infty,1)\cup(3,\infty)
    \mathbb{R} == (-\infty,\infty)
    \left(1,2\right) == (1,2)
    \left(3,\frac{\pi}{2}\right) == (3,\frac{\pi}{2})
    7, 5 == 5,7
    \{1,2\} == 1,2
    5 \text{ or } 7 == 5,7
    x=1, x=2 == 1,2
    1+\sqrt{19}, 1-\sqrt{19} == 1 \pm \sqrt{19}
    3032_{5} == 3032_5
    \pi == 3.14159
    2x - y = -2 == y = 2x+2
    \frac{x^2}{16}-\frac{y^2}{9}=1 == 9x^2-16y^2=144
    xy == yx
    2\cos^2 x - 1 == \cos 2x
    (a+b)(a-b) == a^2-b^2
    \binom{5}{2} == 10
    |x| == \sqrt{x^2}
    8.24 == \approx 8.24 \text{ mph}
    2^{2005} == 2\cdot 2^{2004}
    0.1\overline{6} == \frac{1}{6}
    \sin^2 x + \cos^2 x == 1
    -221_3 == -221_{\text{three}}
    """),
    ("\\boxed{12} then \\boxed{13}", "13"),
    ("so \\boxed 7", "7"),
    ("$\\fbox{9}$", "9"),
    ("\\boxed{\\{1,2\\}}", "\\{2,1\\}"),
    ("The answer is 42.", "42"),
    ("Final Answer: The final answer is $\\frac12$. I hope it is correct.", "\\frac{1}{2}"),
    ("The final answer is 24 I hope it is correct.", "24"),
    ("Thus the value is $24$ so done", "24"),
    ("24", "24"),
    ("Work.\n#### 24", "24"),
    ("\\boxed{3}", "Solving, we get $\\boxed{3}$."),
)

REJECTS: tuple[tuple[str, str], ...] = (
    *_boxed(r"""
    5,7 == 5
    5,7 == 7
    12,13 == 12
    1,2,3 == 123
    1,2,3 == 1
    1,2,3 == 3
    5] == 5
    5) == 5
    \{5\} == 5
    5 == \{5\}
    [5] == 5
    5 | 7 == 5
    5 \text{ or } 7 == 5
    5 or 7 == 7
    5 \text{ (or 7)} == 5
    5 \text{ million} == 5
    4=3 == 3
    4=3 == 4
    \approx 3 == 3
    x \approx 3 == 3
    3 == 5
    -18 == 18
    y=5 == x=5
    \frac{1}{3} == 0.333
    0.3333 == \frac{1}{3}
    3.14159 == \pi
    3.1416 == \pi
    \frac{2}{4} + 1 == \frac{1}{2}
    (2,5] == [2,5)
    (1,2) == [1,2]
    (2,1) == (1,2)
    1,2 == (1,2)
    (1,2,3) == (1,2)
    (1,234) == 1234
    1,2,2 == 1,2
    1,1,2 == 1,2,2
    \{1,2,3\} == 1,2
    3 > x \ge 0 == (0,3]
    \begin{pmatrix} 1 & 2 \end{pmatrix} == \begin{pmatrix} 1 \\ 2 \end{pmatrix}
    \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} == \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
    0<x<1 == [0,1)
    [0,1] == 0\le x<1
    y > 3 == x > 3
    3032 == 3032_5
    3032_6 == 3032_5
    \text{Monday} == \text{Tuesday}
    B == \text{(A)}
    5 \text{ m} == 5 \text{ cm}
    50 == 0.5
    x^2+2x == x^2+2x+1
    \sqrt{x^2} == x
    2^{2005}+1 == 2^{2005}
    9^{9^{9^{9}}} == 9
    (x+1)^{2000} == x
    5 7 == 35
    -\infty == \infty
    2 \sqrt{2} == \sqrt{2}
    \sqrt{-4} == 2
    1/0 == 0
    y=3x+2 == y=2x+2
    12 ab == 12 cd
    AB == ab
    \pm 3 == 3
    """),
    ("\\boxed{12} then \\boxed{13}", "12"),
    ("\\boxed{} The answer is 3", "3"),
    ("\\boxed{ } $3$", "3"),
    ("\\boxed{", "5"),
    ("\\boxed{a{b}", "b"),
    ("\\boxed{" + "(" * 300 + "1" + ")" * 300 + "}", "1"),
    ("", "3"),
    ("I cannot solve this.", "3"),
    ("$x=3$ thus $24$ apples at $5", "24"),
    ("The answer is $5$ or $7$.", "5"),
)
