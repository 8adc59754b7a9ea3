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
    highest: int | Tensor,
) -> Tensor:
    """Visit a block's columns in order and make every move to the grid that lowers a row's loss.

        δ = (the point of scale·(code − zero) nearest to q + R_j/H_jj) − q

    The loss changes by δ(δH_jj − 2R_j), which is not above 0: q is on the grid, so that the nearest point
    lies between q and twice the way to where the loss is least. It is 0 for a tie at most, which moves, too.
    Each move brings the residual of the block up to date, R ← R − δH_j. A column that no input ever reached,
    H_jj ≤ 0, stays.

    Args:
        found: Q, [rows, block]; changed in place.
        residual: R = (Ŵ − Q)H at the start, [rows, block]; not changed.
        hessian: [block, block].
        scale, zero: of every weight, [rows, block]; zero points are whole numbers.
        lowest, highest: code; the highest may be every row's own, [rows, 1].

    Returns:
        δ of every weight, [rows, block].
    """
    # turned round, as a column is what is visited at a time
    local = residual.mT.clone(memory_format=torch.contiguous_format)
    step, zeros = (part.mT.to(local).contiguous() for part in (scale, zero))
    # in steps of the grid all that a column takes is a sum: fewer passes over it
    codes = torch.where(step != 0, found.mT / step, 0).round_()
    curvature = hessian.diagonal()[:, None]
    steps_per_residual = 1 / (curvature * step)
    usable = (curvature > 0) & steps_per_residual.isfinite()
    steps_per_residual = torch.where(usable, steps_per_residual, 0)
    low, high = lowest - zeros, (highest.mT if isinstance(highest, Tensor) else highest) - zeros
    moves = torch.empty_like(local)
    # taken apart at once: where rows are few, reaching for a column takes as long as what is done to it
    parts = (codes, local, steps_per_residual, low, high, step, moves, hessian)
    columns = zip(*(part.unbind() for part in parts), strict=True)
    for j, (code, missing, per_residual, least, most, width, move, row) in enumerate(columns, 1):
        best = torch.addcmul(code, missing, per_residual).round_()
        torch.minimum(torch.maximum(best, least, out=best), most, out=best)
        torch.mul(best.sub_(code), width, out=move)
        local[j:].addr_(row[j:], move, alpha=-1)
    found.add_(moves.mT)
    return moves.mT
