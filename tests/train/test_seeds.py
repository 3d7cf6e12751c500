"""Seeds: a function of what they are for, and of nothing else."""

from __future__ import annotations

import random
import subprocess
import sys

from posttrain.train.seeds import seed_of


def test_the_same_purpose_gives_the_same_seed_on_any_machine():
    """The first 8 bytes of sha256 of "int:1", halved; another process agrees."""
    import hashlib

    expected = int(hashlib.sha256(b"int:1").hexdigest()[:16], 16) // 2
    assert seed_of(1) == expected
    code = "from posttrain.train.seeds import seed_of; print(seed_of(7, 'rejection', 3, 0))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == seed_of(7, "rejection", 3, 0)


def test_another_purpose_gives_another_seed():
    """Neither type nor grouping may be lost: 1 is not "1", (12, 3) not (1, 23), nor may text forge a part."""
    purposes = [
        (1,),
        ("1",),
        (12, 3),
        (1, 23),
        (123,),
        (1, 2),
        (2, 1),
        ("a", "b"),
        ("ab",),
        ("a\x1fstr:b",),
        ("a\x1f", "b"),
        ("a", "\x1fb"),
        (),
        ("",),
    ]
    assert len({seed_of(*purpose) for purpose in purposes}) == len(purposes)


def test_seeds_fit_the_sampler_and_spread():
    """Always below 2**63 and never negative; of 2,000 neighbours none collide and bits are even."""
    seeds = [seed_of(1, step, sample) for step in range(100) for sample in range(20)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 2000
    ones = sum(seed.bit_count() for seed in seeds) / (2000 * 63)
    assert abs(ones - 0.5) < 0.01


def test_any_text_has_a_seed():
    """Ids come from data, which may hold what UTF-8 cannot."""
    assert seed_of("\ud800") != seed_of("\ud801")


def test_the_global_random_state_is_left_alone():
    before = random.getstate()
    seed_of("a", 1)
    assert random.getstate() == before
