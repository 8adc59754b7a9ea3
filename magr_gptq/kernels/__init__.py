"""What takes the time beside products: Triton kernels for CUDA, plain torch for all else.

The only place that chooses between a kernel and its twin. Both give the same numbers up to rounding.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from magr_gptq.kernels.plain import plain_update_
from magr_gptq.kernels.plain_sweep import plain_sweep_block_

# a longer row or group does not fit into the registers of one block of threads
LONGEST = 32768


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

    Fused for rows or groups of at most 32,768 columns.
    """
    size = v.shape[-1] if group_size == -1 else group_size
    if size <= LONGEST and _can_fuse(v):
        # not at the top: triton is optional, and compiles for a device
        from magr_gptq.kernels.fused import fused_update_ as chosen
    else:
        chosen = plain_update_
    return chosen(
        v, z, original, target, t, metric,
        relaxation=relaxation, group_size=group_size, squared=squared, levels=levels,
    )  # fmt: skip


def sweep_block_(
    found: Tensor,
    residual: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    lowest: int,
    highest: int,
) -> Tensor:
    """A block of the coordinate descent's sweep, in place; see `plain_sweep_block_`."""
    if _can_fuse(found):
        from magr_gptq.kernels.fused_sweep import fused_sweep_block_ as chosen
    else:
        chosen = plain_sweep_block_
    return chosen(found, residual, hessian, scale, zero, lowest=lowest, highest=highest)


def _can_fuse(matrix: Tensor) -> bool:
    return matrix.is_cuda and matrix.dtype == torch.float32 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
