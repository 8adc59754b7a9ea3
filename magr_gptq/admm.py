"""min ½‖X(w − ŵ)‖² + penalty(w) by the alternating direction method of multipliers."""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.penalty import LinfPenalty

# both found by the gap to the float64 minimum on real layers: eval/convergence.py
RHO = 0.1
OVER_RELAXATION = 1.6


def splitting_inverse(hessian: Tensor) -> tuple[Tensor, float]:
    """(H + ρI)⁻¹ [columns, columns] and ρ = 0.1·mean(diag H); the condition is at most 10·columns + 1."""
    rho = RHO * float(hessian.diagonal().mean())
    shifted = hessian.clone()
    shifted.diagonal().add_(rho)
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted)), rho


def admm(original: Tensor, inverse: Tensor, rho: float, penalty: LinfPenalty, iterations: int) -> Tensor:
    """Minimise ½(w − ŵ)H(w − ŵ)ᵀ + penalty(w) for every row ŵ of original [rows, columns].

    Splits w = z with scaled dual u and over-relaxation 1.6:

        w ← ŵ + ρ(z − u − ŵ)(H + ρI)⁻¹,  v ← 1.6w − 0.6z + u,  z ← prox_{penalty/ρ}(v),  u ← v − z

    The first line is a correction to ŵ, which is kind to low-precision products. One product and
    one clip an iteration; z − u = 2z − v, so u is never stored.

    Args:
        original: [rows, columns] float.
        inverse, rho: from `splitting_inverse`.

    Returns:
        z, [rows, columns]: clipped, so its largest magnitudes are those that the penalty paid for.
    """
    z = original.clone()
    v = original.clone()
    target = torch.empty_like(original)
    levels = None
    for _ in range(iterations):
        torch.sub(z, v, out=target).add_(z).sub_(original)
        # v ← 1.6w − 0.6z + (v − z) = v + 1.6(w − z)
        v.addmm_(target, inverse, alpha=OVER_RELAXATION * rho)
        v.add_(original, alpha=OVER_RELAXATION).sub_(z, alpha=OVER_RELAXATION)
        levels = penalty.prox_(z.copy_(v), 1 / rho, levels)
    return z
