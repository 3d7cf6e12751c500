"""Packing: rows laid end to end cannot see each other, and every row is used once."""

from __future__ import annotations

import copy
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from posttrain.data.pack import collate, micro_batches, pick
from posttrain.model.decoder import Decoder
from posttrain.model.tree import plant
from posttrain.records import Row
from posttrain.runtime.local import batch_logprobs


def make_rows(*lengths: int, seed: int = 0) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place, length in enumerate(lengths):
        ids = tuple(torch.randint(3, 300, (length,), generator=generator).tolist())
        mask = tuple(at > 0 and (at + place) % 3 != 0 for at in range(length))
        rows.append(Row(str(place), ids, mask))
    return rows


@pytest.fixture(params=["tiny_llama_dir", "tiny_olmo2_dir"], scope="module")
def module(request):
    """In float64."""
    loaded = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(request.param), dtype=torch.float64)
    return loaded.requires_grad_(True)


def exact_logprobs(decoder, batch):
    """(M,) float64 log-probabilities of the batch's targets; `token_logprobs` would give float32."""
    targets = batch.mask.nonzero()[:, 0]
    hidden = decoder.hidden(batch.ids, batch.positions, batch.lengths)[targets - 1]
    every = torch.log_softmax(hidden @ decoder.head_weight.t(), 1)
    return every.gather(1, batch.ids[targets, None])[:, 0]


def loss_and_gradients(module, batches):
    """Sum of target log-probabilities over `batches`, with its gradient."""
    decoder = Decoder(module, compute_dtype=torch.float64)
    module.zero_grad()
    total = sum(exact_logprobs(decoder, batch).sum() for batch in batches)
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in module.named_parameters()}


def assert_same(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


def test_packed_rows_equal_single_rows(module):
    """Loss and gradient of a pack are the sum over its rows alone. Closes T9, T10."""
    rows = make_rows(11, 3, 29, 1, 16)
    loss, gradients = loss_and_gradients(module, [collate(rows)])
    single_loss, single_gradients = loss_and_gradients(module, [collate([row]) for row in rows])
    assert loss == pytest.approx(single_loss, rel=1e-10)
    assert_same(gradients, single_gradients)


def test_packed_log_probabilities_equal_single_rows(module):
    """The same through the learner's own path, which ends in float32. Closes T9, T10."""
    rows = make_rows(11, 3, 29, 1, 16)
    decoder = Decoder(module, compute_dtype=torch.float64)
    packed = batch_logprobs(decoder, collate(rows), temperature=1.0)
    single = torch.cat([batch_logprobs(decoder, collate([row]), temperature=1.0) for row in rows])
    torch.testing.assert_close(packed, single, rtol=0, atol=1e-6)
    assert torch.equal(packed != 0, collate(rows).mask)


def test_one_row_cannot_see_another(module):
    """Change row A: row B's hidden states stay the same to the last bit, wherever it lies. Closes T9."""
    first, second, third = make_rows(13, 8, 20)
    changed = Row(first.id, tuple(301 - i for i in first.ids), first.mask)
    decoder = Decoder(copy.deepcopy(module).float(), compute_dtype=torch.float32)

    def hidden(rows):
        batch = collate(rows)
        with torch.no_grad():
            states = decoder.hidden(batch.ids, batch.positions, batch.lengths)
        return dict(zip(batch.row_ids, states.split(batch.lengths), strict=True))

    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        before = hidden([[first, second, third][i] for i in order])
        after = hidden([[changed, second, third][i] for i in order])
        assert not torch.equal(before["0"], after["0"])
        assert torch.equal(before["1"], after["1"])
        assert torch.equal(before["2"], after["2"])


def test_a_token_cannot_see_later_ones(module):
    (row,) = make_rows(12)
    changed = Row(row.id, (*row.ids[:-1], 5 if row.ids[-1] != 5 else 6), row.mask)
    decoder = Decoder(module, compute_dtype=torch.float64)
    one, other = (
        decoder.hidden(batch.ids, batch.positions, batch.lengths)
        for batch in (collate([row]), collate([changed]))
    )
    assert torch.equal(one[:-1], other[:-1])
    assert not torch.equal(one[-1], other[-1])


def test_collate_by_hand():
    """Two rows of 3 and 2 tokens: positions restart, and no row's first token is a target. Closes T10, T19."""
    rows = [Row("a", (7, 8, 9), (True, False, True)), Row("b", (5, 6), (True, True))]
    batch = collate(rows, advantages=[[1.0, 1.0, 1.0], [2.0, 2.0]], reference_sums=[-3.0, -4.0])
    assert batch.ids.tolist() == [7, 8, 9, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.mask.tolist() == [False, False, True, False, True]
    assert (batch.lengths, batch.row_ids) == ((3, 2), ("a", "b"))
    assert batch.num_targets == 2
    assert batch.advantages.tolist() == [1, 1, 1, 2, 2]
    assert batch.reference_sums.tolist() == [-3, -4]
    assert batch.row_index().tolist() == [0, 0, 0, 1, 1]
    assert batch.count_rows().tolist() == [1, 1]
    assert batch.sum_rows(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).tolist() == [4, 16]


def test_masking_is_by_position_never_by_id():
    """Pad and EOS share an id, and the EOS that closes the turn is still a target. Closes T1."""
    eos = 2
    batch = collate([Row("a", (5, eos, 6, eos), (False, False, True, True)), Row("b", (5, 6), (False, True))])
    assert batch.mask.tolist() == [False, False, True, True, False, True]
    assert eos in batch.ids[batch.mask].tolist()


def test_a_row_without_targets_adds_nothing(module):
    """Closes T8, T18."""
    rows = make_rows(9, 6)
    silent = Row("none", tuple(range(10, 17)), (False,) * 7)
    loss, gradients = loss_and_gradients(module, [collate([rows[0], silent, rows[1]])])
    expected, expected_gradients = loss_and_gradients(module, [collate(rows)])
    assert loss == pytest.approx(expected, rel=1e-10)
    assert_same(gradients, expected_gradients)
    loss, gradients = loss_and_gradients(module, [collate([silent])])
    assert loss == 0
    assert all(not gradient.any() for gradient in gradients.values())


def test_columns_must_fit():
    rows = make_rows(3, 2)
    with pytest.raises(ValueError, match="advantages has 1 rows"):
        collate(rows, advantages=[[1.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match="each token of each row"):
        collate(rows, advantages=[[1.0, 1.0], [1.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match="reference_sums has 3 rows"):
        collate(rows, reference_sums=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least one row"):
        collate([])


def test_pick_keeps_columns_with_their_rows():
    rows = make_rows(3, 2, 4)
    columns = {
        "old_logprobs": [
            [float(10 * place + at) for at in range(len(row.ids))] for place, row in enumerate(rows)
        ]
    }
    batch = pick(rows, [2, 0], columns)
    assert batch.row_ids == ("2", "0")
    assert batch.old_logprobs.tolist() == [20, 21, 22, 23, 0, 1, 2]


def rows_of(*lengths: int) -> list[Row]:
    """Rows of these lengths of which no two begin alike."""
    return [Row(str(i), (1000 + i, *range(length - 1)), (True,) * length) for i, length in enumerate(lengths)]


def computed_tokens(rows: list[Row]) -> int:
    """Tokens that a pass over `rows` computes."""
    ids = np.concatenate([np.asarray(row.ids) for row in rows])
    return len(plant(ids, [len(row.ids) for row in rows]).tokens)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=30),
    st.integers(1, 90),
    st.sampled_from([1, 2, 3]),
)
def test_every_row_once_within_the_bound_and_units_never_parted(shapes, max_tokens, together):
    """Rows of up to three beginnings. A unit alone may exceed the bound; nothing else does, and no row is lost
    or repeated. Closes T8.
    """
    rows = [
        Row(
            str(i),
            (*range(100 * start, 100 * start + common), *range(1000 * i, 1000 * i + own)),
            (True,) * (common + own),
        )
        for i, (start, common, own) in enumerate(
            shapes[: len(shapes) // together * together] or [shapes[0]] * together
        )
    ]
    groups = micro_batches(rows, max_tokens, together=together)
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    for group in groups:
        assert group
        assert len(group) == together or computed_tokens([rows[i] for i in group]) <= max_tokens
        for start in range(0, len(group), together):
            unit = group[start : start + together]
            assert unit == list(range(unit[0], unit[0] + together))
            assert unit[0] % together == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 90))
def test_groups_are_few_and_then_even(lengths, max_tokens):
    """Against every way to cut the rows, which share nothing, into runs: the fewest, and of those the least largest."""
    rows = rows_of(*lengths)
    order = sorted(range(len(rows)), key=lambda i: (rows[i].ids, i))

    def sizes(groups) -> list[int]:
        return [sum(lengths[i] for i in group) for group in groups]

    ways = [
        [order[start:end] for start, end in pairwise([0, *cuts, len(order)])]
        for count in range(len(order))
        for cuts in combinations(range(1, len(order)), count)
    ]
    allowed = [
        way
        for way in ways
        if all(len(group) == 1 or size <= max_tokens for group, size in zip(way, sizes(way), strict=True))
    ]
    fewest = min(len(way) for way in allowed)
    least = min(max(sizes(way)) for way in allowed if len(way) == fewest)
    found = micro_batches(rows, max_tokens)
    assert (len(found), max(sizes(found))) == (fewest, least)


def test_a_shared_prompt_counts_once():
    """Four completions of 10 tokens of one 60-token prompt are 100 tokens, or 145 when all but the first may
    branch off 15 earlier; those of four prompts are 280.
    """
    shared = [Row(str(i), (*range(60), *range(100 * i, 100 * i + 10)), (True,) * 70) for i in range(1, 5)]
    assert [len(group) for group in micro_batches(shared, 145)] == [4]
    assert computed_tokens(shared) == 100
    assert [len(group) for group in micro_batches(rows_of(70, 70, 70, 70), 139)] == [1, 1, 1, 1]


def test_rows_that_begin_alike_are_neighbours():
    """Two prompts taken in turn, 30 tokens each and 10 of completion: one group of each, not two of both."""
    rows = [
        Row(
            str(i),
            (*range(500 * (i % 2), 500 * (i % 2) + 30), *range(9000 + 10 * i, 9010 + 10 * i)),
            (True,) * 40,
        )
        for i in range(6)
    ]
    assert micro_batches(rows, 95) == [[0, 2, 4], [1, 3, 5]]


def test_groups_of_a_fixed_number_of_rows_keep_the_given_order():
    assert micro_batches(rows_of(9, 1, 5, 2, 7), 1, rows=2) == [[0, 1], [2, 3], [4]]


def test_rows_that_do_not_divide_into_units_are_an_error():
    with pytest.raises(ValueError, match="3 rows do not divide into units of 2"):
        micro_batches(rows_of(1, 2, 3), 10, together=2)
