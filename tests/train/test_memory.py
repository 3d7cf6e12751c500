"""Freed memory goes back to the system between stages."""

import sys

import psutil
import pytest
import torch

from posttrain.train.memory import give_back

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that keeps freed blocks")
def test_freed_tensors_leave_the_process():
    """200 MiB in blocks below glibc's mmap threshold, with every tenth alive among them, are given back."""
    large = torch.ones(30 * MIB // 4)
    # freeing it raises the threshold, as a training step does: from now on blocks come from the heap
    del large
    blocks = [torch.ones(MIB // 4) for _ in range(222)]
    survivors = blocks[::10]
    blocks.clear()
    before = psutil.Process().memory_info().rss
    give_back()
    assert psutil.Process().memory_info().rss < before - 100 * MIB
    assert all(bool((block == 1).all()) for block in survivors)
