"""The quickstart's own tasks: short writing requests that a program can check, and small sums.

`docs/quickstart-data.md` shows one of each kind.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from posttrain.data.writing_constraints import PAIRS, RULES, RequestPool
from posttrain.data.writing_sums import SumPool, operand_pairs
from posttrain.data.writing_topics import TOPICS, Split
from posttrain.errors import DataError
from posttrain.records import Message, Problem

Pool = RequestPool | SumPool


def writing_problems(split: Split, *, num: int, seed: int) -> list[Problem]:
    """`num` different problems, the kinds (`Problem.source`) in turn; equal arguments give equal lists.

    A longer list with the same seed begins with the shorter one. "train" and "heldout" share no topic, no
    pair of constraints and no pair of operands, whatever the seeds. DataError if there are not `num` of them.
    """
    if split not in TOPICS:
        raise DataError(f"the writing tasks have the splits train and heldout, not {split!r}")
    kinds = kind_pools(split)
    available = count_available(kinds)
    if not 0 <= num <= available:
        raise DataError(f"the writing tasks have 0 to {available} {split} problems, not {num}; ask for fewer")
    drawn = {
        kind: _draw(pool, (num - place + len(kinds) - 1) // len(kinds), f"{seed}/{split}/{kind}")
        for place, (kind, pool) in enumerate(kinds.items())
    }
    names = list(kinds)
    problems = []
    for number in range(num):
        turn, place = divmod(number, len(names))
        kind = names[place]
        prompt, ground_truth = kinds[kind][drawn[kind][turn]]
        problems.append(
            Problem(
                id=f"writing/{split}/{number:06d}",
                messages=(Message("user", prompt),),
                ground_truth=ground_truth,
                verifier=kinds[kind].verifier,
                source=kind,
            )
        )
    return problems


def kind_pools(split: Split) -> dict[str, Pool]:
    """Every kind of task of a split, in the order of their turns, with all its requests."""
    topics = TOPICS[split]
    pools: dict[str, Pool] = {f"writing/{name}": RequestPool(topics, (rule,)) for name, rule in RULES.items()}
    pools["sums/one_digit"] = SumPool(operand_pairs(split, 1))
    pools["sums/two_digits"] = SumPool(operand_pairs(split, 2))
    for first, second in PAIRS[split]:
        pools[f"writing/{first}+{second}"] = RequestPool(topics, (RULES[first], RULES[second]))
    return pools


def count_available(kinds: Mapping[str, Pool]) -> int:
    """How many problems there are before the first kind whose turn it is has none left."""
    return min(len(pool) * len(kinds) + place for place, pool in enumerate(kinds.values()))


def _draw(pool: Pool, count: int, seed: str) -> list[int]:
    """`count` different indices into `pool`; more of them begin with the same ones."""
    draws = random.Random(seed)
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[draws.randrange(len(pool))] = None
    return list(chosen)
