"""Every Triton kernel against its plain twin, both against the twin in float64."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

if "--dry" in sys.argv:
    # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from magr_gptq.reduction.groups import group_count
from magr_gptq.reduction.kernels import LONGEST
from magr_gptq.reduction.kernels.fused import fused_update_
from magr_gptq.reduction.kernels.plain import plain_update_
from magr_gptq.rounding.kernels.fused import fused_sweep_block_
from magr_gptq.rounding.kernels.plain import plain_sweep_block_
from tools.gpu.part import Part, parse

ROWS, COLUMNS, GROUPS = (1, 3, 32), (1, 127, 4096, 8192, 28672), (-1, 32, 128)
DRY_ROWS, DRY_COLUMNS, DRY_GROUPS = (3,), (1, 48), (-1, 32)
# squared, warm start, metric, t for every row: each with and without each other one
VARIANTS = [
    (True, True, True, True),
    (True, False, True, False),
    (False, True, False, False),
    (False, False, True, True),
]
# rows and width of a block, and columns of the layer that it is a view of
SWEEPS = [(1, 1, 1), (3, 17, 100), (20, 128, 4096), (32, 128, 28672), (11008, 128, 4096)]
DRY_SWEEPS = [(1, 1, 1), (3, 17, 40)]
# what a kernel may be further from float64 than its twin, in its twin's error, and of the largest value
TIMES, LEAST = 10, 1e-6
# of moves that another order of additions may tip over
TIPPED = 1e-3


def update_arguments(
    rows: int, columns: int, group_size: int, variant: tuple[bool, ...], device: str
) -> dict[str, Any]:
    """One iteration's tensors; some groups are clipped to 0."""
    squared, warm, weighted, per_row = variant
    generator = torch.Generator(device).manual_seed(columns + group_size)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    groups = group_count(columns, group_size)
    v, z, original = (random(rows, columns).mul_(4).sub_(2) for _ in range(3))
    return {
        "v": v, "z": z, "original": original, "target": torch.zeros_like(v),
        "t": 10 ** (3 * random(rows if per_row else 1, groups) - 1),
        "metric": 10 ** (2 * random(columns) - 1) if weighted else None,
        "relaxation": 1.6, "group_size": group_size, "squared": squared,
        "levels": 2 * random(rows, groups) if warm else None,
    }  # fmt: skip


def sweep_arguments(rows: int, width: int, columns: int, device: str) -> dict[str, Any]:
    """A block in the middle of a layer, every second scale negative."""
    generator = torch.Generator(device).manual_seed(width)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    start = (columns - width) // 2
    block = slice(start, start + width)
    factor = random(width, columns).sub_(0.5)
    scale = 0.5 + random(rows, 1)
    scale[::2] *= -1
    codes = (16 * random(rows, columns)).floor_()
    return {
        "found": (scale * (codes - 8))[:, block], "residual": (20 * random(rows, columns) - 10)[:, block],
        "hessian": factor @ factor.T / columns + torch.eye(width, device=device),
        "scale": scale.expand(-1, width), "zero": torch.full_like(scale, 8).expand(-1, width),
        "lowest": 0, "highest": 15,
    }  # fmt: skip


def called(function: Callable[..., Tensor], given: dict[str, Any], wide: bool = False) -> dict[str, Tensor]:
    """Result and arguments after a call on copies, which keep their strides; in float64 where wide."""
    copies = {name: _copy(value, wide) for name, value in given.items()}
    result = function(**copies)
    return {name: value for name, value in {"result": result, **copies}.items() if torch.is_tensor(value)}


def _copy(value: Any, wide: bool) -> Any:
    if not torch.is_tensor(value):
        return value
    # of a view of a larger matrix, copied with it
    whole = value if value._base is None else value._base
    base = whole.double() if wide else whole.clone()
    return base.as_strided(value.shape, value.stride(), value.storage_offset())


def compare_update(given: dict[str, Any]) -> dict[str, Any]:
    """The largest errors against float64, of the largest value, or of 1."""
    exact = called(plain_update_, given, wide=True)
    kernel, twin = called(fused_update_, given), called(plain_update_, given)
    names = ("result", "v", "z", "target")
    errors = [
        [float((x[n] - exact[n]).abs().max() / exact[n].abs().max().clamp_min(1)) for n in names]
        for x in (kernel, twin)
    ]
    right = all(k <= TIMES * t + LEAST for k, t in zip(*errors, strict=True))
    return {"right": right, "error": max(errors[0]), "twin_error": max(errors[1])}


def compare_sweep(given: dict[str, Any]) -> dict[str, Any]:
    """The share of moves that differ, and how the loss fell in float64."""
    kernel, twin = called(fused_sweep_block_, given), called(plain_sweep_block_, given)
    differ = float(((kernel["result"] - twin["result"]).abs() > 1e-5).float().mean())
    fell, twin_fell = (_fall(given, found["result"]) for found in (kernel, twin))
    right = differ <= TIPPED and fell <= twin_fell + 1e-4 * abs(twin_fell)
    return {"right": right, "differ": differ, "fall": fell, "twin_fall": twin_fell}


def _fall(given: dict[str, Any], moves: Tensor) -> float:
    """Σ δ(Hδ − 2R) over the rows."""
    wide = moves.double()
    return float((wide * (wide @ given["hessian"].double() - 2 * given["residual"].double())).sum())


def main(part: Part) -> None:
    """All sizes, each a line."""
    rows, columns, sizes = (DRY_ROWS, DRY_COLUMNS, DRY_GROUPS) if part.dry else (ROWS, COLUMNS, GROUPS)
    for m, n, size, variant in itertools.product(rows, columns, sizes, VARIANTS):
        if (n if size == -1 else size) <= LONGEST:  # longer ones are left to the twin
            with part.case(kernel="update", rows=m, columns=n, group_size=size, variant=variant) as found:
                found |= compare_update(update_arguments(m, n, size, variant, part.device))
    for m, width, n in DRY_SWEEPS if part.dry else SWEEPS:
        with part.case(kernel="sweep", rows=m, width=width, columns=n) as found:
            found |= compare_sweep(sweep_arguments(m, width, n, part.device))


if __name__ == "__main__":
    main(parse(__doc__))
