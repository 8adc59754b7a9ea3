"""Whether a device has room for all candidates of a layer at once.

A device's allocator says no; Linux promises memory that it lacks, and ends the process later. So what can be
computed is asked beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

# what a toolkit allocates while it rounds, in float32 weights a candidate: 4.3 in GPTQModel's loop
ROUNDING = 4.3
MEMINFO = Path("/proc/meminfo")
# by plain RuntimeErrors: of torch's allocator for the CPU, of CUDA outside of torch's allocator, of cuBLAS
SAID = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
# such a layer's candidates are rounded one after another: a toolkit factors the Hessian for each, which takes
# little of the time where there are many rows
LARGE, TALL = 2**22, 2


def is_large_and_tall(rows: int, columns: int) -> bool:
    """Whether a layer [rows, columns] has its candidates rounded one after another, memory or not."""
    return rows * columns >= LARGE and rows >= TALL * columns


def fits(shapes: Sequence[tuple[int, int]], at_once: int, device: torch.device) -> bool:
    """Whether layers [out, in] can be rounded, so many candidates in one pass; True if not known."""
    free = free_bytes(device)
    return free is None or sum(needed_bytes(*shape, at_once) for shape in shapes) <= free


def needed_bytes(rows: int, columns: int, at_once: int) -> float:
    """Of one layer while so many candidates are rounded: those, target, what rows keep, two Hessians more."""
    return 4 * (rows * columns * (ROUNDING * at_once + 2) + 2 * columns**2)


def free_bytes(device: torch.device) -> int | None:
    """What is left on a device; None where nobody says."""
    if device.type == "cuda":
        # torch keeps what it has freed
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "cpu" and MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        if "MemAvailable" in lines:
            return 1024 * int(lines["MemAvailable"].split()[0])
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no room."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(said in str(error) for said in SAID)


def is_distributed() -> bool:
    """Whether this is one of several processes that wait for each other's sums."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
