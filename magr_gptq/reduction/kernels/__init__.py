"""ADMM's update: a Triton kernel for CUDA, plain torch for all else; the same numbers up to rounding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from magr_gptq.reduction.kernels.fusing import can_fuse, fused_or_plain
from magr_gptq.reduction.kernels.plain import plain_update_

# a longer row or group spills out of the registers of one block of threads
LONGEST = 8192


def update_(
    v: Tensor,
    z: Tensor,
    original: Tensor,
    target: Tensor,
    t: Tensor,
    metric: Tensor | None,
    *,
    relaxation: float,
    group_size: int,
    squared: bool,
    levels: Tensor | None,
) -> Tensor:
    """ADMM's over-relaxation, threshold, clip and dual update, in place; see `plain_update_`.

    Fused for rows or groups of at most 8,192 columns.
    """
    settings: dict[str, Any] = {
        "relaxation": relaxation, "group_size": group_size, "squared": squared, "levels": levels,
    }  # fmt: skip

    def plain() -> Tensor:
        return plain_update_(v, z, original, target, t, metric, **settings)

    def fused() -> Tensor:
        # not at the top: triton is optional, and compiles for a device
        from magr_gptq.reduction.kernels.fused import fused_update_

        return fused_update_(v, z, original, target, t, metric, **settings)

    size = v.shape[-1] if group_size == -1 else group_size
    return fused_or_plain("update", fused, plain, v) if size <= LONGEST and can_fuse(v) else plain()
