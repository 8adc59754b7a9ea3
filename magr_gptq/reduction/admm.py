"""min ½‖X(w − ŵ)‖² + penalty(w) by the alternating direction method of multipliers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import ScaledHessian, shifted_cholesky
from magr_gptq.reduction.kernels import update_
from magr_gptq.reduction.penalty import LinfPenalty

# all found by the gap to the float64 minimum on real layers: eval/studies/convergence
BETWEEN = 0.1
EVEN = 0.3
START = 0.5
LEAST = 1e-3
OVER_RELAXATION = 1.4


@dataclass(frozen=True)
class Admm:
    """What ADMM needs to know of a Hessian, or of a batch; shared by all weights and penalties.

    start: the metric of the first prox, the diagonal of a matrix, [..., columns].
    metric: r, the diagonal of the metric R in which w and z are held together, [..., columns].
    product: R(H + R)⁻¹, with which w is solved for, [..., columns, columns].
    """

    start: Tensor
    metric: Tensor
    product: Tensor

    @classmethod
    def of(cls, hessian: ScaledHessian, variances: Tensor) -> Admm:
        """A metric from the two costs of moving a column: H_ii alone, 1/Uᵢᵢ² once the others follow.

            r = 0.1·√(H_ii/Uᵢᵢ²), at least 1e-3·mean(diag H), so that the condition of H + R is at most
            1000·columns + 1

        Args:
            variances: 1/Uᵢᵢ² of `conditional_variances`, [..., columns].
        """
        between = (hessian.diagonal * variances).sqrt()
        return cls._held_in(
            torch.maximum(BETWEEN * between, LEAST * hessian.mean), hessian, START * variances
        )

    @classmethod
    def even(cls, hessian: ScaledHessian) -> Admm:
        """One metric for all columns, r = 0.3·mean(diag H), from the first prox on.

        For linear penalties, whose multipliers don't shrink with the weight: in a loose metric they
        would clip every row to 0 before the other columns can make up for it.
        """
        return cls._held_in(EVEN * hessian.mean.expand_as(hessian.diagonal), hessian)

    @classmethod
    def _held_in(cls, metric: Tensor, hessian: ScaledHessian, start: Tensor | None = None) -> Admm:
        """One Cholesky, or more where H + R is indefinite: R is what it takes then."""
        factor, metric = shifted_cholesky(hessian.copy, metric)
        torch.cholesky_inverse(factor, out=factor)
        return cls(metric if start is None else start, metric, factor.mul_(metric[..., None]))

    def minimise(self, original: Tensor, penalty: LinfPenalty, iterations: int) -> Tensor:
        """Minimise ½(w − ŵ)H(w − ŵ)ᵀ + penalty(w) for every row ŵ of original [..., rows, columns].

        Splits w = z with scaled dual u and over-relaxation 1.4, in the metric R:

            w ← ŵ + (z − u − ŵ)R(H + R)⁻¹,  v ← 1.4w − 0.4z + u,  z ← prox_penalty(v) in R,  u ← v − z

        The first line is a correction to ŵ, which is kind to low-precision products. One product and
        one clip an iteration; z − u = 2z − v, so u is never stored. It starts from the minimum for a
        diagonal Hessian, in the metric START·1/Uᵢᵢ², whose multiplier R·u is kept.

        Returns:
            z, [..., rows, columns]: clipped, so its largest magnitudes are those that the penalty paid for.
        """
        v, z, target = original.clone(), original.clone(), torch.empty_like(original)
        add_product_ = v.addmm_ if v.ndim == 2 else v.baddbmm_
        update = partial(
            update_, v, z, original, target, penalty.weights,
            group_size=penalty.group_size, squared=penalty.squared,
        )  # fmt: skip
        levels = update(self.start, relaxation=0.0, levels=None)  # z ← prox(ŵ), v stays
        v.sub_(z).mul_((self.start / self.metric)[..., None, :]).add_(z)
        torch.sub(z, v, out=target).add_(z).sub_(original)
        for _ in range(iterations):
            # v ← 1.4w − 0.4z + (v − z) = v + 1.4(w − z); the update adds what is left of it
            add_product_(target, self.product, alpha=OVER_RELAXATION)
            levels = update(self.metric, relaxation=OVER_RELAXATION, levels=levels)
        return z
