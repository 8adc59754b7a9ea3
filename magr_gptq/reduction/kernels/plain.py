"""The plain torch twin of the fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.penalty import LinfPenalty, clip


def plain_update_(
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
    """What an iteration of ADMM does after its product, for every row; v, z and target change in place.

        v ← v + relaxation·(ŵ − z),  z ← clip(v, −θ, θ),  target ← 2z − v − ŵ

    On entry v holds v + relaxation·target·R(H + R)⁻¹, R the diagonal metric; θ is the threshold of
    `reduction.prox`, so z is the prox at v, in the metric, of t‖·‖∞, or of (t/2)‖·‖∞² where squared,
    over each group. target is the next product's left factor, z − u − ŵ.

    Args:
        v, z, original, target: [rows, columns], or [batch, rows, columns], rows of several Hessians.
        t: weight of every group's penalty, [..., rows, groups], or what broadcasts to it.
        metric: diagonal of R, [columns] or [batch, columns]; None is all ones.
        levels: θ of the iteration before, or None.

    Returns:
        θ, [..., rows, groups].
    """
    v.add_(original, alpha=relaxation).sub_(z, alpha=relaxation)
    found = LinfPenalty(t, group_size, squared).levels(torch.abs(v, out=target), metric, levels)
    clip(v, found, group_size, out=z)
    torch.sub(z, v, out=target).add_(z).sub_(original)
    return found
