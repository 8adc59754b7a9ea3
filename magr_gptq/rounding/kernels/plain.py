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
    local, moves = residual.clone(), torch.zeros_like(residual)
    for j, curvature in enumerate(hessian.diagonal().tolist()):
        if curvature <= 0:
            continue
        code = ((found[:, j] + local[:, j] / curvature) / scale[:, j] + zero[:, j]).round_()
        nearest = (code.clamp_(lowest, highest) - zero[:, j]) * scale[:, j]
        move = nearest - found[:, j]
        accepted = move * (move * curvature - 2 * local[:, j]) < 0
        moves[:, j] = torch.where(accepted, move, 0)
        found[:, j] = torch.where(accepted, nearest, found[:, j])
        local.addr_(moves[:, j], hessian[j], alpha=-1)
    return moves
