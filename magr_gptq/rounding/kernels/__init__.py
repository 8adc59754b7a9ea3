"""A block of the sweep: a Triton kernel for CUDA, plain torch for all else; the same moves up to rounding."""

from __future__ import annotations

from torch import Tensor

from magr_gptq.reduction.kernels.fusing import can_fuse
from magr_gptq.rounding.kernels.plain import plain_sweep_block_


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
    if can_fuse(found):
        # not at the top: triton is optional, and compiles for a device
        from magr_gptq.rounding.kernels.fused import fused_sweep_block_ as chosen
    else:
        chosen = plain_sweep_block_
    return chosen(found, residual, hessian, scale, zero, lowest=lowest, highest=highest)
