"""What a large magnitude costs: the paper's linear penalty, and one derived from the rounding error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from magr_gptq.reduction.groups import group_views, largest_magnitude
from magr_gptq.reduction.hessian import diagonal_of, shifted_cholesky
from magr_gptq.reduction.prox import threshold

DAMPING = 0.01


@dataclass(frozen=True)
class LinfPenalty:
    """Σ_g weight_g·‖w_g‖∞, or Σ_g ½·weight_g·‖w_g‖∞² where squared; g runs over a row's groups.

    weights: [groups], or what broadcasts to [..., rows, groups]; in the units of the Hessian.
    """

    weights: Tensor
    group_size: int
    squared: bool

    def value(self, weight: Tensor) -> Tensor:
        """The penalty of every row of weight [..., rows, columns]: [..., rows]."""
        largest: Tensor = torch.cat(
            [largest_magnitude(view) for view in group_views(weight, self.group_size)], dim=-1
        )
        return ((0.5 * largest.square() if self.squared else largest) * self.weights).sum(-1)

    def prox_(self, v: Tensor, metric: Tensor | None = None, levels: Tensor | None = None) -> Tensor:
        """Replace v [..., rows, columns] by argmin_w penalty(w) + ½Σᵢ metricᵢ(wᵢ − vᵢ)², row by row.

        Args:
            metric: [..., columns]; None is all ones.
            levels: what a nearby call returned, for a warm start.

        Returns:
            The level at which every group was clipped, [..., rows, groups].
        """
        found = self.levels(v.abs(), metric, levels)
        clip(v, found, self.group_size, out=v)
        return found

    def levels(self, magnitudes: Tensor, metric: Tensor | None, start: Tensor | None) -> Tensor:
        """The levels of `prox_` for |v| [..., rows, columns]."""
        views = group_views(magnitudes, self.group_size)
        counts = [view.shape[-2] for view in views]
        nothing: list[Tensor | None] = [None] * len(views)
        metrics, starts = nothing, nothing
        if metric is not None:
            # all rows share it: [groups, size], or [batch, 1, groups, size]
            shared = group_views(metric[..., None, :], self.group_size)
            metrics = [m[0] if metric.ndim == 1 else m for m in shared]
        if start is not None:
            starts = [s[..., None] for s in torch.split(start, counts, dim=-1)]
        pieces = zip(views, torch.split(self.weights, counts, dim=-1), metrics, starts, strict=True)
        found = [
            threshold(view, weights[..., None], squared=self.squared, metric=m, start=s).squeeze(-1)
            for view, weights, m, s in pieces
        ]
        return torch.cat(found, dim=-1)


def clip(v: Tensor, levels: Tensor, group_size: int, *, out: Tensor) -> None:
    """Clip v [..., rows, columns] to [−level, level] with the levels of its groups, [..., rows, groups]."""
    views = group_views(v, group_size)
    each = torch.split(levels[..., None], [view.shape[-2] for view in views], dim=-2)
    for view, level, into in zip(views, each, group_views(out, group_size), strict=True):
        torch.clamp(view, -level, level, out=into)


def linear_penalty(alpha: float, groups: int, group_size: int, like: Tensor) -> LinfPenalty:
    """The paper's α‖w‖∞ for every row or group (equation 6), for a Hessian with λmax = 1."""
    weights = torch.full((groups,), alpha, dtype=like.dtype, device=like.device)
    return LinfPenalty(weights, group_size, squared=False)


def derived_penalty(variances: Tensor, bits: int, group_size: int, strength: float) -> LinfPenalty:
    """½γ_g‖w_g‖∞² with γ_g = c·Σ_{i∈g} 1/Uᵢᵢ² / (3(2ᵇ − 1)²): c times the rounding error to come.

    On a grid of step δ = 2‖w_g‖∞/(2ᵇ − 1) GPTQ's expected squared output error on the group is
    about δ²/12·Σ_{i∈g} 1/Uᵢᵢ², with U the upper Cholesky factor of the damped inverse Hessian.

    Args:
        variances: 1/Uᵢᵢ² of `conditional_variances`, [..., columns], in the order in which columns are
            rounded.
        strength: the constant c.
    """
    sums = [view.sum(-1) for view in group_views(variances[..., None, :], group_size)]
    per_group = torch.cat(sums, dim=-1) * (strength / (3 * (2**bits - 1) ** 2))
    return LinfPenalty(per_group[0] if variances.ndim == 1 else per_group, group_size, squared=True)


def conditional_variances(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """1/Uᵢᵢ² of the damped Hessian, [..., columns]: what is left of column i given the later ones.

    (H + dI)⁻¹ = UᵀU with U upper means H + dI = U⁻¹U⁻ᵀ, so 1/Uᵢᵢ are the diagonal of the Cholesky
    factor of the Hessian with both axes reversed; d is `damping` times the mean of diag(H), more where
    that leaves H indefinite.
    """
    shift = damping * diagonal_of(hessian).mean(-1, keepdim=True)
    factor, _ = shifted_cholesky(lambda: hessian.flip(-2, -1), shift)
    variances: Tensor = diagonal_of(factor).square().flip(-1)
    return variances
