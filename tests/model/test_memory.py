"""Freed memory goes back to the system between stages."""

import ctypes
import os
import subprocess
import sys

import psutil
import pytest
import torch

from posttrain.model.memory import give_back
from posttrain.model.native import build

MIB = 2**20
needs_kernels = pytest.mark.skipif(build.library() is None, reason=f"no compiler: {build.status()}")


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


CHURN = """
import resource, sys, torch
from posttrain.model.memory import keep_pages
if sys.argv[1] == "keep":
    keep_pages()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(100 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt")
def test_kept_pages_are_not_asked_for_again():
    """Ten blocks of 100 MiB are 256,000 pages of 4 KiB when each is new, and next to none when kept."""
    faults = {}
    for mode in ("keep", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", CHURN, mode],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        )
        faults[mode] = int(done.stdout)
    assert faults["keep"] < 1000
    assert faults["plain"] > 10 * faults["keep"]


HOLES = """
import ctypes, sys, torch
from posttrain.model.memory import keep_pages
keep_pages()
if sys.argv[1] == "fitting":
    from posttrain.model.native.allocator import fit_blocks
    assert fit_blocks().startswith("ours"), fit_blocks()
class Info(ctypes.Structure):
    _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
SIZE = (1 << 18) - 2  # with glibc's header whole lines: blocks lie side by side, and holes are no larger than they
blocks = [torch.ones(SIZE) for _ in range(100)]
stay = blocks[::2]
del blocks
before = getattr(libc.mallinfo2(), "0")
again = [torch.full((SIZE,), 2.0) for _ in range(50)]
print(getattr(libc.mallinfo2(), "0") - before)
assert all(x.data_ptr() % 64 == 0 for x in again + stay)
assert all(x.eq(1).all() for x in stay) and all(x.eq(2).all() for x in again)
"""


@needs_kernels
def test_a_freed_block_takes_the_next_of_its_size():
    """50 MiB of holes of 1 MiB each take 50 MiB in blocks of 1 MiB; under glibc's aligned allocation the heap grows."""
    grown = {}
    for mode in ("fitting", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", HOLES, mode],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        )
        grown[mode] = int(done.stdout)
    assert grown["fitting"] <= 2 * MIB
    assert grown["plain"] >= 10 * MIB


SIZES = """
import torch
from posttrain.model.native.allocator import fit_blocks
old = torch.arange(5000)
assert fit_blocks().startswith("ours"), fit_blocks()
generator = torch.Generator().manual_seed(0)
alive = {}
for turn in range(4000):
    size = int(2 ** (torch.rand(1, generator=generator) * 22))
    alive[int(torch.randint(64, (1,), generator=generator))] = size, torch.full((size,), turn % 251, dtype=torch.uint8)
    for count, block in list(alive.values())[:4]:
        assert len(block) == count and block.data_ptr() % 64 == 0 and block.min() == block.max()
assert old.sum() == 5000 * 4999 // 2
del old
assert torch.empty(0).numel() == 0
kept = torch.ones(3000)
kept.untyped_storage().resize_(40000)
assert kept.eq(1).all()
with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
    large = torch.empty(1 << 20)
    del large
counts = [event.self_cpu_memory_usage for event in seen.events() if event.self_cpu_memory_usage]
assert counts and max(counts) == 4 << 20, counts
try:
    torch.empty(1 << 60, dtype=torch.uint8)
except RuntimeError as error:
    print(error)
"""


@needs_kernels
def test_blocks_of_all_sizes_are_aligned_and_keep_what_they_hold():
    """Blocks of before are freed after it, storage can grow, the profiler counts, too much is PyTorch's own error."""
    done = subprocess.run(
        [sys.executable, "-c", SIZES], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "you tried to allocate" in done.stdout


@pytest.mark.parametrize("setting", [{"POSTTRAIN_NATIVE": "0"}, {"CXX": "/nowhere/c++"}, {"CXX": "false"}])
def test_without_a_compiler_the_allocator_is_pytorchs(setting, tmp_path):
    """The status says why, and nothing fails."""
    code = (
        "from posttrain.model.native.allocator import fit_blocks; print(fit_blocks()); "
        "import torch; torch.ones(10000)"
    )
    environment = dict(os.environ) | setting | {"POSTTRAIN_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("PyTorch's") and next(iter(setting.values())) in done.stdout
