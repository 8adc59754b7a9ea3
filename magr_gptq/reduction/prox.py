"""Proximal operators of the ℓ∞ norm and of its square: both clip at one threshold a row."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(
    magnitudes: Tensor, t: Tensor, *, squared: bool, metric: Tensor | None = None, start: Tensor | None = None
) -> Tensor:
    """The level θ at which the proximal operator in the metric ½Σᵢ mᵢ(wᵢ − vᵢ)² clips.

        squared=False, prox of t‖·‖∞:       Σᵢ mᵢ·max(aᵢ − θ, 0) = t, and θ = 0 where Σᵢ mᵢaᵢ ≤ t
        squared=True,  prox of (t/2)‖·‖∞²:  Σᵢ mᵢ·max(aᵢ − θ, 0) = t·θ

    Newton's method on this convex, piecewise-linear equation: with the active set A = {aᵢ > θ}, its
    mass |A| = Σ_A mᵢ and the excess e = Σ_A mᵢ(aᵢ − θ), θ ← θ + (e − t)/|A|, or θ + (e − tθ)/(|A| + t).
    From any start it lands at or left of the root, then climbs, and is exact once A stays as it is.
    No sort.

    Args:
        magnitudes: [..., n], a = |v| ≥ 0.
        t: weight of the penalty, ≥ 0; broadcasts against [..., 1].
        squared: which of the two penalties.
        metric: m > 0, broadcasts against the magnitudes [..., groups, n]; None is all ones.
        start: θ of a nearby problem, [..., 1].

    Returns:
        θ, [..., 1], of the magnitudes' dtype.
    """
    tiny = torch.finfo(magnitudes.dtype).tiny
    origin = torch.zeros_like(magnitudes[..., :1])
    theta = _newton_step(magnitudes, origin if start is None else start, t, squared, metric, tiny)[0]
    mass_before = None
    while True:
        proposed, mass = _newton_step(magnitudes, theta, t, squared, metric, tiny)
        # from the left the active mass only falls; no NaN can keep this going
        if mass_before is not None and not (mass < mass_before).any():
            return theta
        # from the left the steps only climb: rounding must not undo one, or the loop could cycle
        theta = torch.maximum(theta, proposed)
        mass_before = mass


def prox_linf(v: Tensor, t: Tensor | float) -> Tensor:
    """argmin_w t‖w‖∞ + ½‖w − v‖² = clip(v, −θ, θ) along the last dimension; t ≥ 0."""
    return _clip(v, t, squared=False)


def prox_squared_linf(v: Tensor, t: Tensor | float) -> Tensor:
    """argmin_w (t/2)‖w‖∞² + ½‖w − v‖² = clip(v, −θ, θ) along the last dimension; t ≥ 0."""
    return _clip(v, t, squared=True)


def _newton_step(
    a: Tensor, theta: Tensor, t: Tensor, squared: bool, metric: Tensor | None, tiny: float
) -> tuple[Tensor, Tensor]:
    excess = (a - theta).clamp_min_(0)
    total = _weigh_(excess, metric)
    mass = _weigh_(excess.sign_(), metric)
    if squared:
        return theta + (total - t * theta) / (mass + t).clamp_min(tiny), mass
    # a start above every magnitude has no slope to follow: begin again at 0
    return (theta + (total - t) / mass).clamp_min(0).where(mass > 0, 0), mass


def _weigh_(values: Tensor, metric: Tensor | None) -> Tensor:
    """Σᵢ mᵢvᵢ, [..., 1]; the values are overwritten, as einsum would turn a copy of them round."""
    if metric is not None and metric.numel() == values.shape[-1] == metric.shape[-1]:
        # one metric for all: a product reads the values once
        return (values @ metric.flatten())[..., None]
    return (values if metric is None else values.mul_(metric)).sum(-1, keepdim=True)


def _clip(v: Tensor, t: Tensor | float, *, squared: bool) -> Tensor:
    theta = threshold(v.abs(), torch.as_tensor(t, dtype=v.dtype, device=v.device), squared=squared)
    return v.clamp(-theta, theta)
