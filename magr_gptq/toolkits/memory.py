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
# such a layer's candidates are rounded one after another: a toolkit factors the Hessian for each, which takes
# little of the time where there are many rows
LARGE, TALL = 2**22, 2


def goes_one_by_one(rows: int, columns: int) -> bool:
    """Whether a layer [rows, columns] is so large and tall that its candidates are not rounded together."""
    return rows * columns >= LARGE and rows >= TALL * columns


def fits(shapes: Sequence[tuple[int, int]], candidates: int, device: torch.device) -> bool:
    """Whether layers of these shapes, [out, in], can be rounded in one pass; True where that is not known."""
    free = free_bytes(device)
    return free is None or sum(needed_bytes(*shape, candidates) for shape in shapes) <= free


def needed_bytes(rows: int, columns: int, candidates: int) -> float:
    """Of one layer while its candidates are rounded: those, the weight itself, and two Hessians more."""
    at_once = 1 if goes_one_by_one(rows, columns) else candidates
    return 4 * (rows * columns * (ROUNDING * at_once + candidates - at_once + 1) + 2 * columns**2)


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
