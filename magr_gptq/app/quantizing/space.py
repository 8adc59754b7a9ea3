"""Whether the checkpoint will fit on the disk that it is to be written to."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from magr_gptq.app.checks import find_pickles, find_shards, tensor_shapes
from magr_gptq.errors import InputError

# what stays in 16 bits: embeddings and the output layer
UNPACKED = ("embed", "wte", "wpe", "lm_head", "embed_out")
MARGIN, EXTRA_BYTES = 1.1, 16 << 20


def check_space(out: Path, folder: Path, bits: int, group_size: int) -> None:
    """InputError where the packed model in `folder` would not fit on the disk of `out`."""
    wanted = MARGIN * packed_bytes(folder, bits, group_size) + EXTRA_BYTES
    disk = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if free < wanted:
        raise InputError(
            f"the checkpoint needs about {_gigabytes(wanted)}, and the disk of {disk} has "
            f"{_gigabytes(free)} left; free some, or name an --out on another disk"
        )


def packed_bytes(folder: Path, bits: int, group_size: int) -> float:
    """An estimate: matrices in `bits` with a scale and a zero point a group, everything else in 16."""
    shards = find_shards(folder)
    if not shards:
        # pickles don't tell their shapes without being loaded; packed they are smaller than this
        return float(sum(file.stat().st_size for file in find_pickles(folder)))
    shapes = (found for shard in shards for found in tensor_shapes(shard))
    return sum(_tensor_bytes(name, shape, bits, group_size) for name, shape in shapes)


def _tensor_bytes(name: str, shape: list[int], bits: int, group_size: int) -> float:
    numbers = math.prod(shape)
    if len(shape) < 2 or any(word in name for word in UNPACKED):
        return numbers * 2
    columns = group_size if group_size > 0 else shape[-1]
    return numbers * (bits + (16 + bits) / columns) / 8


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
