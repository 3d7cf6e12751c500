"""What a device can do: memory, arithmetic, bandwidth; and how many of them there are."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import RecipeError

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of device, per piece."""

    name: str
    memory_gib: float
    """What the driver reports of it."""
    peak_tflops: float
    """Dense bfloat16 arithmetic, as the data sheet has it."""
    bandwidth_gb: float
    """Of its memory, in GB (1e9 bytes) a second."""
    process_gib: float = 1.0
    """What a process holds before any tensor: context and libraries."""
    slack: float = 0.05
    """Share of what is allocated that the allocator holds beyond it."""
    is_cpu: bool = False
    multiplies_bfloat16: bool = True


DEVICES: Mapping[str, Device] = {
    device.name.lower(): device
    for device in (
        Device("A10G", 22.5, 70, 600),
        Device("A100-40GB", 39.5, 312, 1555),
        Device("A100", 79.2, 312, 2039),
        Device("L4", 22.5, 121, 300),
        Device("L40S", 44.4, 362, 864),
        Device("RTX4090", 23.6, 165, 1008),
        Device("H100", 79.1, 989, 3350),
        Device("H200", 139.8, 989, 4800),
        Device("B200", 178.0, 2250, 8000),
    )
}
"""Peak and bandwidth from the makers' data sheets (SXM parts, without sparsity)."""

TRAIN_UTILISATION = {"gpu": 0.40, "cpu": 0.60}
"""Share of the peak that training's matrix products reach; published runs on H100 report 0.3 to 0.5."""
BANDWIDTH_UTILISATION = 0.60
"""Share of the bandwidth that drawing one token after the other reaches."""
LIBRARIES_GIB = 0.54
"""Python, torch and the data libraries of a process on a CPU; measured (benchmarks/memory.py)."""
PEFT_GIB = 0.12
"""What a process on a CPU holds more once it has adapters."""
HEAP_SLACK = 0.05
"""What glibc's heap holds beyond the blocks in use while its pages are kept, with our allocator; measured."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices of one kind: `per_node` in each of `nodes`."""

    device: Device
    per_node: int = 1
    nodes: int = 1

    @property
    def count(self) -> int:
        """All devices."""
        return self.per_node * self.nodes

    @property
    def label(self) -> str:
        """As a user writes it."""
        return f"{self.count}x{self.device.name}" if self.count > 1 else self.device.name


def parse_fleet(text: str, nodes: int = 1) -> Fleet:
    """The fleet that `8xH100`, `H100` or `cpu` names, on each of `nodes`; RecipeError for one not known."""
    found = re.fullmatch(r"(?:(\d+)\s*[x*]\s*)?([A-Za-z0-9-]+)", text.strip())
    if found is None or int(found[1] or 1) < 1 or nodes < 1:
        raise RecipeError(f"--devices is {text!r}; write a count and a kind, such as 8xH100, or cpu")
    count, name = int(found[1] or 1), found[2].lower()
    if name == "cpu":
        if count * nodes > 1:
            raise RecipeError("a CPU run is one process on one machine; use --devices cpu")
        return Fleet(this_cpu())
    if name not in DEVICES:
        near = difflib.get_close_matches(name, DEVICES, n=1)
        known = ", ".join(device.name for device in DEVICES.values())
        hint = f"did you mean {DEVICES[near[0]].name}?" if near else f"there are cpu, {known}"
        raise RecipeError(f"no device {found[2]!r} is known; {hint}")
    return Fleet(DEVICES[name], count, nodes)


def this_cpu() -> Device:
    """This machine's processor and memory. Its rates are rough: 50 GFLOP/s a core, twice that in bfloat16."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError):
        memory = 16.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fast = multiplies_bfloat16()
    return Device(
        name="cpu",
        memory_gib=memory,
        peak_tflops=cores * (0.1 if fast else 0.05),
        bandwidth_gb=15.0 * cores,
        process_gib=LIBRARIES_GIB,
        slack=0.0 if returns_pages() else HEAP_SLACK,
        is_cpu=True,
        multiplies_bfloat16=fast,
    )


def returns_pages() -> bool:
    """Whether the user has set glibc's thresholds, so that a run leaves them alone and freed blocks go back."""
    return any(name.startswith("MALLOC_") and name.endswith("_THRESHOLD_") for name in os.environ)


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bfloat16 in hardware; the rule that training goes by."""
    if not cpuinfo.exists():
        return False
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(line.split(":", 1)[1].split()))
    return False
