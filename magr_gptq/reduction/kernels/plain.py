"""The plain torch twin of the fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.groups import group_count
from magr_gptq.reduction.penalty import LinfPenalty, clip

# rows on a CPU are taken so many elements a thread at a time: 512 KiB of each matrix stay in a core's cache
CHUNK_ELEMENTS = 2**17


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
    rows = v.shape[-2]
    elements = CHUNK_ELEMENTS * torch.get_num_threads() if v.device.type == "cpu" else v.numel()
    chunk = max(1, elements * rows // v.numel())
    weights = t.expand(*v.shape[:-1], group_count(v.shape[-1], group_size))
    found = torch.empty_like(weights, memory_format=torch.contiguous_format)
    for start in range(0, rows, chunk):
        some = (..., slice(start, start + chunk), slice(None))
        found[some] = _update_rows_(
            v[some], z[some], original[some], target[some], LinfPenalty(weights[some], group_size, squared),
            metric, relaxation, None if levels is None else levels[some],
        )  # fmt: skip
    return found


def _update_rows_(
    v: Tensor,
    z: Tensor,
    original: Tensor,
    target: Tensor,
    penalty: LinfPenalty,
    metric: Tensor | None,
    relaxation: float,
    levels: Tensor | None,
) -> Tensor:
    v.add_(original, alpha=relaxation).sub_(z, alpha=relaxation)
    found = penalty.levels(torch.abs(v, out=target), metric, levels)
    clip(v, found, penalty.group_size, out=z)
    torch.sub(z, v, out=target).add_(z).sub_(original)
    return found
