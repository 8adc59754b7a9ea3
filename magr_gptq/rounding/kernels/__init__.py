"""A block of the sweep: a Triton kernel for CUDA, plain torch for all else; the same moves up to rounding."""

from __future__ import annotations

from torch import Tensor

from magr_gptq.reduction.kernels.fusing import can_fuse, fused_or_plain
from magr_gptq.rounding.kernels.plain import plain_sweep_block_


def sweep_block_(
    found: Tensor,
    residual: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    lowest: int,
    highest: int | Tensor,
) -> Tensor:
    """A block of the coordinate descent's sweep, in place; see `plain_sweep_block_`.

    The kernel has one highest code for all rows.
    """

    def plain() -> Tensor:
        return plain_sweep_block_(found, residual, hessian, scale, zero, lowest=lowest, highest=highest)

    if isinstance(highest, Tensor) or not can_fuse(found):
        return plain()
    code: int = highest

    def fused() -> Tensor:
        # not at the top: triton is optional, and compiles for a device
        from magr_gptq.rounding.kernels.fused import fused_sweep_block_

        return fused_sweep_block_(found, residual, hessian, scale, zero, lowest=lowest, highest=code)

    return fused_or_plain("sweep", fused, plain, found)
