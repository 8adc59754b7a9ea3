"""A block of the coordinate descent's sweep in one Triton kernel.

A program has a few rows, and their residuals stay in registers over all columns of the block. What it reads
of other matrices, a column or a row of H at a time, it reads from a cache after the first time.
"""

# Triton's decorator and its language carry no types
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
# a fused (code − zero)·scale − q would be a tiny move where there is none
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# adding and subtracting 1.5·2²³ rounds to the nearest whole number, a half to the even one
ROUNDER = tl.constexpr(12582912.0)


def fused_sweep_block_(
    found: Tensor,
    residual: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    lowest: int,
    highest: int,
) -> Tensor:
    """The same as `magr_gptq.rounding.kernels.plain.plain_sweep_block_`, arguments and result too.

    Moves differ where rounding decides a tie in another way; a move that changes no loss is not made here.

    Raises:
        ValueError: found, residual or hessian is not float32; the grid may have any dtype.
    """
    for name, matrix in (("found", found), ("residual", residual), ("hessian", hessian)):
        if matrix.dtype != torch.float32:
            raise ValueError(f"{name} is {matrix.dtype}; give float32")
    rows, width = found.shape
    moves = torch.empty_like(found, memory_format=torch.contiguous_format)
    matrices = (found, residual, hessian, scale, zero, moves)
    strides = [stride for matrix in matrices for stride in matrix.stride()]
    _sweep_kernel[(triton.cdiv(rows, ROWS),)](
        *matrices, rows, width, *strides, lowest, highest,
        ROWS=ROWS, LENGTH=triton.next_power_of_2(width), **OPTIONS,
    )  # fmt: skip
    return moves


@triton.jit
def _sweep_kernel(
    found_ptr, residual_ptr, hessian_ptr, scale_ptr, zero_ptr, moves_ptr, rows, width,
    found_row, found_column, residual_row, residual_column, hessian_row, hessian_column,
    scale_row, scale_column, zero_row, zero_column, moves_row, moves_column, lowest, highest,
    ROWS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    column = tl.arange(0, LENGTH)
    inside = column < width
    offset = row[:, None] * residual_row + column[None, :] * residual_column
    local = tl.load(residual_ptr + offset, mask=live[:, None] & inside[None, :], other=0.0)
    for j in range(width):
        curvature = tl.load(hessian_ptr + j * (hessian_row + hessian_column))
        q = tl.load(found_ptr + row * found_row + j * found_column, mask=live, other=0.0)
        scale = tl.load(scale_ptr + row * scale_row + j * scale_column, mask=live, other=1).to(tl.float32)
        zero = tl.load(zero_ptr + row * zero_row + j * zero_column, mask=live, other=0).to(tl.float32)
        pull = tl.sum(tl.where(column[None, :] == j, local, 0.0), axis=1)

        # clamped first: the bounds are whole numbers, so it comes to the same
        code = tl.div_rn(q + tl.div_rn(pull, curvature), scale) + zero
        code = tl.clamp(code, lowest, highest, propagate_nan=tl.PropagateNan.ALL)
        nearest = (code + ROUNDER - ROUNDER - zero) * scale
        move = tl.where(curvature > 0, nearest - q, 0.0)
        accepted = move * (move * curvature - 2 * pull) < 0
        move = tl.where(accepted, move, 0.0)
        tl.store(moves_ptr + row * moves_row + j * moves_column, move, mask=live)
        tl.store(found_ptr + row * found_row + j * found_column, nearest, mask=live & accepted)

        coupling = tl.load(hessian_ptr + j * hessian_row + column * hessian_column, mask=inside, other=0.0)
        local -= move[:, None] * coupling[None, :]
