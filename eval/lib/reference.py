"""The default method in float64, every weight reduced until its duality gap is closed."""

from __future__ import annotations

import torch
from torch import Tensor

from eval.lib.baselines import (
    Penalty,
    derived_penalty,
    gptq_grid,
    grouped,
    inverse_factor,
    objective,
    ungrouped,
)
from magr_gptq import MagRConfig
from magr_gptq.config import Candidate
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.choice import criterion
from magr_gptq.rounding.scales import balanced_gain, fitted_factors
from magr_gptq.rounding.sweep import coordinate_descent

TOLERANCE = 1e-4
# ADMM's metric as a share of the geometric mean of a column's two curvatures, and the steps to make in it:
# the first is fast on most layers, the second on those of a few dominant directions
METRICS = ((0.1, 60), (0.01, 1000))
STEPS_BETWEEN_CHECKS = 10


def weighted_level(magnitudes: Tensor, metric: Tensor, weight: Tensor) -> Tensor:
    """argmin_θ ½·weight·θ² + ½Σᵢ metricᵢ·max(aᵢ − θ, 0)² along the last dimension, by sorting; [..., 1].

    With the k largest active, θₖ = Σ metricᵢaᵢ / (weight + Σ metricᵢ); the active ones are those above it.
    """
    order = magnitudes.argsort(-1, descending=True)
    descending = magnitudes.gather(-1, order)
    metrics = metric.expand_as(magnitudes).gather(-1, order)
    candidates = (metrics * descending).cumsum(-1) / (weight + metrics.cumsum(-1))
    last = (descending > candidates).sum(-1, keepdim=True) - 1
    return candidates.gather(-1, last.clamp_min(0))


def minimise(weight: Tensor, hessian: Tensor, factor: Tensor, penalty: Penalty) -> Tensor:
    """Rows of least ½(w − ŵ)H(w − ŵ)ᵀ + ½Σ_g γ_g‖w_g‖∞², all in float64, by ADMM.

    Ends once the rows together cannot gain another 1e-4 of what they gained, by the duality gap.

    Raises:
        RuntimeError: the gap is not closed in any of METRICS.
    """
    for share, steps in METRICS:
        rows, gap = _by_admm(weight, hessian, factor, penalty, share, steps)
        if gap <= TOLERANCE:
            return rows
    raise RuntimeError(f"a gap of {gap:.1e} of the gain is left after {steps} steps")


def _by_admm(
    weight: Tensor, hessian: Tensor, factor: Tensor, penalty: Penalty, share: float, steps: int
) -> tuple[Tensor, float]:
    """Rows, and the duality gap over what they gained."""
    metric = share * (hessian.diagonal() / factor.diagonal().square()).sqrt()
    product = torch.linalg.inv(hessian + metric.diag()) * metric[:, None]
    metrics, weights = grouped(metric[None], penalty.group_size), penalty.per_group(weight)[..., None]
    start = objective(weight, weight, hessian, penalty).sum()
    rows, dual = weight, torch.zeros_like(weight)
    for count in range(1, steps + 1):
        free = weight + (rows - dual - weight) @ product
        ahead = 1.6 * free - 0.6 * rows + dual
        groups = grouped(ahead, penalty.group_size)
        level = weighted_level(groups.abs(), metrics, weights)
        rows = ungrouped(groups.clamp(-level, level), weight.shape[1])
        dual = ahead - rows
        if count % STEPS_BETWEEN_CHECKS == 0:
            value = objective(rows, weight, hessian, penalty).sum()
            # of the iterate before the clip, whose gradient no stiff direction has blown up
            gap = value - penalty.lower_bound(free, weight, hessian).sum()
            # above the start nothing is gained yet
            left = float(gap / (start - value)) if value < start else torch.inf
            if left <= TOLERANCE:
                break
    return rows, left


def quantize(weight: Tensor, hessian: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """The layer as the default configuration quantizes it, and what of it was rounded; all in float64."""
    plan = MagRConfig().resolve(bits, group_size)
    original, hessian = weight.double(), hessian.double()
    factor = inverse_factor(hessian)
    reduced, rounded, steps = [], [], []
    for candidate in plan.candidates:
        rows = _reduced(candidate, original, hessian, factor, bits, group_size)
        found, step = gptq_grid(rows, factor, bits, group_size, rows.new_tensor([candidate.factors]))
        reduced.append(rows)
        rounded.append(found)
        steps.append(step)
    errors, shrinkages = (
        torch.stack([squared_norm(original - some, hessian) for some in each]) for each in (rounded, reduced)
    )
    picked, every = criterion(errors, shrinkages).argmin(0), torch.arange(len(original))
    kept, step = torch.stack(rounded)[picked, every], torch.stack(steps)[picked, every]
    group_of = torch.arange(weight.shape[1]) // (weight.shape[1] if group_size == -1 else group_size)
    for _ in range(plan.sweeps):
        kept, step = _fitted(kept, step, group_of, original, hessian)
        kept = _swept(kept, step[:, group_of], original, hessian, bits)
    kept, _ = _fitted(kept, step, group_of, original, hessian)
    return kept.to(weight), torch.stack(reduced)[picked, every].to(weight)


def _reduced(
    candidate: Candidate, original: Tensor, hessian: Tensor, factor: Tensor, bits: int, group_size: int
) -> Tensor:
    if candidate.penalty is None:
        return original
    penalty = derived_penalty(factor, bits, group_size, candidate.penalty.strength)
    return minimise(original, hessian, factor, penalty)


def _swept(kept: Tensor, step: Tensor, original: Tensor, hessian: Tensor, bits: int) -> Tensor:
    half = 2 ** (bits - 1)
    return coordinate_descent(
        kept, original, hessian, step, torch.zeros_like(step), lowest=-half, highest=half - 1, sweeps=1
    )


def _fitted(
    kept: Tensor, step: Tensor, group_of: Tensor, original: Tensor, hessian: Tensor
) -> tuple[Tensor, Tensor]:
    """On scales of least loss, a group's and then the row's."""
    factors = fitted_factors(original @ hessian, kept, hessian, group_of, step.shape[1])
    kept, step = kept * factors[:, group_of], step * factors
    gain = balanced_gain(original @ hessian, original, kept)[:, None]
    return kept * gain, step * gain
