"""The compiled kernels against float64 formulas, and against themselves in other company."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from posttrain.model.attention import Layout, _plain, attention
from posttrain.model.logprobs import token_logprobs
from posttrain.model.native import attention as kernels
from posttrain.model.native import build, elementwise, newest, product
from posttrain.model.ops import Weight
from posttrain.model.tree import plant

# with GCC they must compile; a skip would hide that they do not
WANTED = build.library() is not None or bool(re.search(r"(^|/)[cg]\+\+ failed", build.status()))
pytestmark = pytest.mark.skipif(not WANTED, reason=f"no kernels: {build.status()}")
BF16 = torch.bfloat16
CPU = torch.device("cpu")


def normal(*size: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = BF16) -> torch.Tensor:
    return (torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def is_rounded(found: torch.Tensor, exact: torch.Tensor, *, off: float = 0.002) -> bool:
    """Whether `found` is `exact` (float64) rounded to bfloat16, all but a share `off` that lie between two numbers.

    In float32: within a few units in the last place of the largest.
    """
    if found.dtype == torch.float32:
        return float((found.double() - exact).abs().max()) <= 2e-6 * max(1.0, float(exact.abs().max()))
    wrong = found != exact.to(BF16)
    near = (found.double() - exact).abs() <= exact.abs() * 2**-7 + 1e-5
    return bool(near.all()) and float(wrong.float().mean()) <= off


KINDS = pytest.mark.parametrize("kind", [torch.float32, BF16])


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, BF16), (BF16, BF16), (torch.float32, torch.float32)]
)
@pytest.mark.parametrize("rows", [1, 3, 37])
def test_rms_norm(dtype, kind, rows):
    x, weight = normal(rows, 48, dtype=dtype), normal(48, seed=1, dtype=torch.float32)
    grad = normal(rows, 48, seed=2, dtype=kind)
    exact = x.double().requires_grad_(), weight.double().requires_grad_()
    wanted = exact[0] * (exact[0].square().mean(-1, keepdim=True) + 1e-5).rsqrt() * exact[1]
    assert is_rounded(elementwise.rms_norm(x, weight, 1e-5, kind), wanted.detach())
    gradients = torch.autograd.grad((wanted * grad.double()).sum(), exact)
    found = elementwise.rms_norm_backward(x, weight, grad, 1e-5)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(found[0].double(), gradients[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[1].double(), gradients[1], rtol=1e-5, atol=1e-5)


@KINDS
def test_adding_and_norming_is_the_one_after_the_other(kind):
    x, y = normal(5, 64, dtype=torch.float32), normal(5, 64, seed=1, dtype=kind)
    total, weight = x + y, torch.rand(64) + 0.5
    wanted = elementwise.rms_norm(total, weight, 1e-6, kind)
    assert torch.equal(elementwise.add_rms_norm_(x, y, weight, 1e-6), wanted)
    assert torch.equal(x, total)


@KINDS
def test_swiglu(kind):
    both = normal(9, 192, scale=4.0, dtype=kind)
    gate, up = both.chunk(2, 1)  # rows that lie apart
    grad = normal(9, 96, seed=1, dtype=kind)
    exact = [t.double().requires_grad_() for t in (gate, up)]
    wanted = F.silu(exact[0]) * exact[1]
    assert is_rounded(elementwise.swiglu(gate, up), wanted.detach())
    gradients = torch.autograd.grad((wanted * grad.double()).sum(), exact)
    for found, expected in zip(elementwise.swiglu_backward(gate, up, grad), gradients, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0.01 if kind == BF16 else 2e-6, atol=1e-5)


@KINDS
def test_rotary_turns_by_the_angle_and_back(kind):
    x = normal(7, 5, 64, dtype=kind)
    angles = torch.rand(7, 1, 32, generator=torch.Generator().manual_seed(1)) * 6
    cos, sin = angles.cos().to(kind), angles.sin().to(kind)
    first, second = x.double().chunk(2, 2)
    wanted = torch.cat([first * cos - second * sin, second * cos + first * sin], 2)
    assert is_rounded(elementwise.rotary(x, cos, sin), wanted)
    back = torch.cat([first * cos + second * sin, second * cos - first * sin], 2)
    assert is_rounded(elementwise.rotary(x, cos, sin, sign=-1.0), back)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("vocab", [64, 5008])
@KINDS
def test_log_softmax(kind, vocab, temperature):
    logits, targets = normal(11, vocab, scale=5.0, dtype=kind), torch.arange(11) * 5
    grad = normal(11, seed=2, dtype=torch.float32)
    exact = logits.double().requires_grad_()
    wanted = (exact / temperature).log_softmax(1).gather(1, targets[:, None])[:, 0]
    normalisers, chosen = elementwise.log_softmax(logits, targets, temperature)
    torch.testing.assert_close(chosen.double(), wanted.detach(), rtol=1e-6, atol=1e-5)
    (gradient,) = torch.autograd.grad((wanted * grad.double()).sum(), exact)
    found = elementwise.log_softmax_backward_(logits.clone(), targets, normalisers, grad, temperature)
    torch.testing.assert_close(found.double(), gradient, rtol=0.01 if kind == BF16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-40, 0.0])
@KINDS
def test_extreme_numbers_come_out_as_torch_has_them(kind, value):
    logits = normal(1, 64, dtype=kind)
    logits[0, 5] = value
    targets = torch.tensor([7])
    found = elementwise.log_softmax(logits, targets, 1.0)[1]
    wanted = logits.float().log_softmax(1)[0, 7]
    torch.testing.assert_close(found[0], wanted, equal_nan=True, rtol=1e-5, atol=1e-5)


ROWS = {
    "alone": [300],
    "short": [1, 2, 15, 16, 17],
    "long": [700, 33],
    "shared": [(45, 5), (45, 60), (45, 300)],
}


def forest(case: str):
    """Token rows; a pair is a start that the case's rows share, and what follows."""
    stream = np.random.default_rng(0)
    start = stream.integers(0, 1000, 45)
    rows = [
        np.concatenate([start, stream.integers(0, 1000, n[1])])
        if isinstance(n, tuple)
        else stream.integers(0, 1000, n)
        for n in ROWS[case]
    ]
    return plant(np.concatenate(rows), [len(row) for row in rows]), [len(row) for row in rows]


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (4, 4, 128), (8, 1, 32), (7, 1, 64)])
@pytest.mark.parametrize("depth", [0, 32])
@KINDS
def test_attention_over_segments_and_over_the_cache_is_one_to_the_bit(
    kind, depth, case, heads, kv_heads, size
):
    """Both are the float64 formula but for the weights' rounding and the result's, and the learner's are the engine's.

    Rows that begin alike read that start in one place, or each in its own.
    """
    tree, lengths = forest(case)
    total = len(tree.tokens)
    made = [normal(total, h, size, seed=i, dtype=kind) for i, h in enumerate((heads, kv_heads, kv_heads))]
    query, key, value = made
    layout = Layout(tree, kind, CPU)
    found, normalisers = kernels.attend_segments(query, key, value, layout.spans)
    exact, size_of = (
        _plain(query.double(), key.double(), v, Layout(tree, torch.float64, CPU))
        for v in (value.double(), value.double().abs())
    )
    # each rounding is by half of a unit in the last place at most
    rounding = torch.finfo(kind).eps if kind == BF16 else 1e-6
    assert ((found.double() - exact).abs() <= 1.01 * rounding * size_of).all()
    if build.at_once(kind) == 1:  # float32 inside: only the result is rounded
        assert is_rounded(found, exact, off=0.01)
    assert normalisers.isfinite().all()

    capacity = -(-max(lengths) // 32) * 32
    keys = torch.zeros(len(lengths), kv_heads, capacity, size, dtype=kind)
    values, last, start, trunks = keys.clone(), [], 0, []
    for slot, length in enumerate(lengths):
        places = torch.from_numpy(tree.places[start : start + length])
        start, last = start + length, [*last, int(places[-1])]
        shared = depth if length > depth else 0
        parts = [x[places[:-1]].transpose(0, 1) for x in (key, value)]
        for cache, part in zip((keys, values), parts, strict=True):
            cache[slot, :, : length - 1 - shared] = part[:, shared:]
        held = [torch.stack([torch.zeros_like(part), part])[:, :, :shared].contiguous() for part in parts]
        trunks.append(
            newest.Trunk(newest.laid_keys(held[0]), newest.laid_values(held[1])) if shared else None
        )
    if case == "shared":  # one place for all
        trunks = trunks[:1] * len(trunks)
    unturned = torch.ones(len(last), 1, size // 2, dtype=kind)  # cos of no angle
    projected = torch.cat([query[last], key[last], value[last]], 1).flatten(1)
    lines = newest.Lines(trunks, range(len(lengths)), lengths)
    cache = newest.laid_keys(keys), newest.laid_values(values)
    out = newest.attend_newest(projected, unturned, unturned * 0, *cache, lines, layer=1, heads=heads)
    assert torch.equal(out.view(-1, heads, size), found[last])


@KINDS
def test_tokens_of_one_slot_together_are_those_one_after_the_other(kind):
    """Three tokens of slot 1 in one call, beside one of slot 0: each sees those before it and none after."""
    heads, kv_heads, size, capacity = 6, 2, 64, 64
    slots, lengths = [1, 0, 1, 1], [62, 5, 63, 64]
    projected = normal(4, (heads + 2 * kv_heads) * size, seed=1, dtype=kind)
    angles = (normal(4, 1, size // 2, seed=s, dtype=kind) for s in (2, 3))
    cos, sin = angles
    keys, values = (normal(2, kv_heads, capacity, size, seed=s, dtype=kind) for s in (4, 5))
    trunk = newest.Trunk(*(normal(1, kv_heads, 32, size, seed=s, dtype=kind) for s in (6, 7)))
    trunks = [trunk, None, trunk, trunk]
    together = [newest.laid_keys(keys), newest.laid_values(values).clone()]
    apart = [cache.clone() for cache in together]

    def attend(rows: list[int], cache: list[torch.Tensor]) -> torch.Tensor:
        picked = [[x[row] for row in rows] for x in (trunks, slots, lengths)]
        given = projected[rows], cos[rows], sin[rows], *cache
        return newest.attend_newest(*given, newest.Lines(*picked), layer=0, heads=heads)

    found = attend([0, 1, 2, 3], together)
    alone = [attend([row], apart) for row in range(4)]
    assert torch.equal(found, torch.cat(alone))
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize(("rows", "expected"), [(1, [1]), (8, [8]), (21, [8, 8, 5])])
def test_rows_of_one_start_are_tasks_of_at_most_eight(rows, expected):
    """And each row with no start is one."""
    assert newest._tasks(np.array([0, 0, *[64] * rows])) == [
        (0, 1),
        (1, 1),
        *((2 + 8 * i, count) for i, count in enumerate(expected)),
    ]


@KINDS
def test_rows_alone_and_in_a_crowd_are_equal_to_the_bit(kind):
    tree, lengths = forest("short")
    query, key, value = (normal(len(tree.tokens), h, 64, seed=h, dtype=kind) for h in (6, 2, 2))
    together = attention(query, key, value, Layout(tree, kind, CPU))
    start = 0
    for length in lengths:
        ids = np.arange(length)
        places = tree.places[start : start + length]
        start += length
        alone = attention(query[places], key[places], value[places], Layout(plant(ids, [length]), kind, CPU))
        assert torch.equal(alone, together[places])


@pytest.mark.parametrize("case", ["alone", "short", "long", "shared"])
def test_gradients_do_not_depend_on_how_queries_are_cut(case, monkeypatch):
    """A long segment's queries are several tasks, and a key's gradient the sum of what they give."""
    tree, _ = forest(case)
    inputs = [normal(len(tree.tokens), h, 64, seed=h).requires_grad_() for h in (6, 2, 2)]

    def gradients(chunk: int) -> list[torch.Tensor]:
        monkeypatch.setattr(kernels, "_BACKWARD_CHUNK", chunk)
        out = attention(*inputs, Layout(tree, BF16, CPU))
        return list(torch.autograd.grad((out * out.detach()).sum(), inputs))

    whole = gradients(100_000)
    for chunk in (7, 64):
        for found, expected in zip(gradients(chunk), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-4)


def test_gradients_through_the_kernels_are_as_near_as_pytorchs(monkeypatch):
    """bfloat16 attention and log-probabilities against float64, with the kernels and without."""
    tree, _ = forest("shared")
    made = [normal(len(tree.tokens), h, 64, seed=h) for h in (9, 3, 3)]
    hidden, weight = normal(40, 64, seed=5), normal(5008, 64, seed=6, dtype=torch.float32)
    targets = torch.arange(40)

    def gradients(dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in made]
        out = attention(*inputs, Layout(tree, dtype, CPU))
        leaves = [
            hidden.to(dtype).requires_grad_(),
            weight.to(torch.promote_types(dtype, torch.float32)).requires_grad_(),
        ]
        scores = token_logprobs(leaves[0], leaves[1], targets)
        return [
            *torch.autograd.grad((out * out.detach()).sum(), inputs),
            *torch.autograd.grad(scores.sum(), leaves),
        ]

    exact, ours = gradients(torch.float64), gradients(BF16)
    monkeypatch.setattr(elementwise, "library", lambda: None)
    monkeypatch.setattr(kernels, "library", lambda: None)
    theirs = gradients(BF16)
    for truth, native, plain in zip(exact, ours, theirs, strict=True):
        errors = [
            float((x.double() - truth.double()).norm() / truth.double().norm()) for x in (native, plain)
        ]
        assert errors[0] < 1.3 * errors[1] + 1e-3
        assert errors[0] < 0.02


@pytest.mark.parametrize("setting", [{"POSTTRAIN_NATIVE": "0"}, {"CXX": "/nowhere/c++"}, {"CXX": "false"}])
def test_without_a_compiler_there_are_no_kernels_and_no_error(setting, monkeypatch, tmp_path):
    """The status says why."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    code = (
        "from posttrain.model.native import build; assert build.library() is None; print(build.status());"
        "import torch; from posttrain.model.ops import swiglu;"
        "x = torch.ones(2, 32).bfloat16(); print(swiglu(x, x)[0, 0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert next(iter(setting.values())) in done.stdout
    assert "0.7305" in done.stdout  # 1 / (1 + 1/e), rounded


needs_bfloat16 = pytest.mark.skipif(
    not product.fits(torch.zeros(16, 64, dtype=BF16)),
    reason="bfloat16 is multiplied by PyTorch on this processor",
)


@pytest.mark.parametrize(
    ("dtype", "outputs", "inputs"),
    [
        (torch.float32, 16, 7),
        *((torch.float32, *size) for size in [(16, 16), (208, 96), (96, 1536)]),
        *(
            pytest.param(BF16, *size, marks=needs_bfloat16)
            for size in [(16, 320), (208, 96), (96, 1536), (80, 32), (16, 300), (64, 600), (80, 74)]
            if size[1] % 32 == 0 or not torch.cpu._is_amx_tile_supported()
        ),
    ],
)
def test_products_of_few_rows(dtype, outputs, inputs):
    """Float64's, and each row's own to the bit, however many there are; the weight comes back as it was."""
    weight = normal(outputs, inputs, dtype=dtype)
    assert product.fits(weight)
    laid = product.laid(weight)
    x = normal(205, inputs, seed=1, dtype=dtype)
    found = product.multiply(x, laid)
    exact = x.double() @ weight.double().t()
    if dtype == BF16:
        assert is_rounded(found, exact)
    else:
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6 * inputs)
    for rows in (1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 31, 32, 33, 64, 65, 95, 96, 97):
        assert torch.equal(product.multiply(x[-rows:], laid), found[-rows:])
    assert torch.equal(product.plain(laid), weight)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(BF16, marks=needs_bfloat16)])
@pytest.mark.parametrize("rows", [1, 3, 64, 150])
def test_gated_products_are_swiglu_of_both(dtype, rows):
    weight, x = normal(2 * 208, 96, dtype=dtype), normal(rows, 96, seed=1, dtype=dtype)
    turns = product.in_turns(weight)
    gate, up = product.multiply(x, product.laid(weight)).chunk(2, 1)
    assert torch.equal(product.multiply_gated(x, product.laid(turns)), elementwise.swiglu(gate, up))
    assert torch.equal(product.one_after_the_other(turns), weight)


@needs_bfloat16
@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(960, 576), (576, 1536), (608, 2048), (256, 512), (256, 514), (4096, 1024), (64, 8192)],
)
@pytest.mark.parametrize("rows", [4, 64, 700])
def test_bfloat16_products_have_the_learners_bits(outputs, inputs, rows):
    weight, x = normal(outputs, inputs), normal(rows, inputs, seed=1)
    learners = Weight(weight, BF16).of(x)
    exact = x.double() @ weight.double().t()
    torch.testing.assert_close(learners.double(), exact, rtol=2**-8, atol=1e-5 * inputs)
    if rows <= 32:  # among more of them PyTorch's have no one order where it multiplies in tiles
        assert torch.equal(learners, F.linear(x, weight))
    if torch.cpu._is_amx_tile_supported() and inputs % 32:
        pytest.skip("PyTorch multiplies rows that are not whole tiles")
    assert product.fits(weight)
    assert torch.equal(product.multiply(x, product.laid(weight)), learners)
    master = weight.float() * (1 + 2.0**-12)  # rounds to the weight
    assert torch.equal(Weight(master, BF16).of(x, out=torch.empty_like(learners)), learners)


@pytest.fixture
def found_anew():
    product.stretch_of.cache_clear()
    yield
    product.stretch_of.cache_clear()


@needs_bfloat16
@pytest.mark.parametrize("inputs", [600, 2000])
def test_a_product_that_sums_otherwise_is_left_to_pytorch(monkeypatch, found_anew, inputs):
    """Here one that goes through a row from its end."""
    monkeypatch.setattr(
        product.F, "linear", lambda x, weight: (x.flip(1).float() @ weight.flip(1).float().t()).to(BF16)
    )
    assert not product.fits(normal(64, inputs))


def test_products_that_no_kernel_takes():
    assert not product.fits(torch.zeros(15, 64))
    assert not product.fits(torch.zeros(16, 63, dtype=BF16))
    assert not product.fits(torch.zeros(16, 64, dtype=torch.float16))
    assert not product.fits(torch.zeros(16, 64, device="meta"))
