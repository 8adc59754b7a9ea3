"""The plain torch twin of the fused sweep."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_sweep_block_(
    found: Tensor,
    residual: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    lowest: int,
    highest: int,
) -> Tensor:
    """Visit a block's columns in order and make every move to the grid that lowers a row's loss.

        δ = (the point of scale·(code − zero) nearest to q + R_j/H_jj) − q,  made where δ(δH_jj − 2R_j) < 0

    Each move brings the residual of the block up to date, R ← R − δH_j. A column that no input ever
    reached, H_jj ≤ 0, stays.

    Args:
        found: Q, [rows, block]; changed in place.
        residual: R = (Ŵ − Q)H at the start, [rows, block]; not changed.
        hessian: [block, block].
        scale, zero: of every weight, [rows, block].
        lowest, highest: code.

    Returns:
        δ of every weight, [rows, block].
    """
    # turned round, as a column is what is visited at a time
    parts = (found, residual, scale, zero)
    values, local, step, zeros = (part.mT.clone(memory_format=torch.contiguous_format) for part in parts)
    moves = torch.zeros_like(local)
    for j, curvature in enumerate(hessian.diagonal().tolist()):
        if curvature <= 0:
            continue
        code = ((values[j] + local[j] / curvature) / step[j]).add_(zeros[j]).round_()
        nearest = code.clamp_(lowest, highest).sub_(zeros[j]).mul_(step[j])
        move = nearest - values[j]
        accepted = move * (move * curvature - 2 * local[j]) < 0
        moves[j] = torch.where(accepted, move, 0)
        values[j] = torch.where(accepted, nearest, values[j])
        local[j + 1 :].addr_(hessian[j, j + 1 :], moves[j], alpha=-1)
    found.copy_(values.mT)
    return moves.mT
