"""min ½‖X(w − ŵ)‖² + penalty(w) by the alternating direction method of multipliers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import ScaledHessian, shifted_cholesky
from magr_gptq.reduction.kernels import update_
from magr_gptq.reduction.penalty import LinfPenalty

# all found by the gap to the float64 minimum on real layers: eval/studies/convergence.
# A loose metric finds where the minimum is, a tight one settles there
LOOSE, TIGHT = 0.05, 0.2
EVEN = 0.1
START = 0.3
LEAST = 1e-3
OVER_RELAXATION = 1.6


@dataclass(frozen=True)
class Splitting:
    """A metric R in which w and z are held together, and the product that solves for w.

    metric: r, the diagonal of R, [..., columns], in the units of the Hessian.
    product: R(H + R)⁻¹, [..., columns, columns].
    """

    metric: Tensor
    product: Tensor

    @classmethod
    def of(cls, hessian: ScaledHessian, metric: Tensor) -> Splitting:
        """One Cholesky, or more where H + R is indefinite: R is what it takes then."""
        factor, metric = shifted_cholesky(hessian.copy, metric)
        torch.cholesky_inverse(factor, out=factor)
        return cls(metric, factor.mul_(metric[..., None]))


@dataclass(frozen=True)
class Admm:
    """What ADMM needs to know of a Hessian, or of a batch; shared by all weights and penalties.

    start: the metric of the first prox, [..., columns].
    """

    start: Tensor
    loose: Splitting
    tight: Splitting

    @classmethod
    def of(cls, hessian: ScaledHessian, variances: Tensor) -> Admm:
        """Metrics from the two costs of moving a column: H_ii alone, 1/Uᵢᵢ² once the others follow.

            r = κ·√(H_ii/Uᵢᵢ²), at least 1e-3·mean(diag H), so that the condition of H + R is at most
            1000·columns + 1; κ = 0.05 (loose) and 0.2 (tight)

        Args:
            variances: 1/Uᵢᵢ² of `conditional_variances`, [..., columns].
        """
        between = (hessian.diagonal * variances).sqrt()
        least = LEAST * hessian.mean
        loose, tight = (Splitting.of(hessian, torch.maximum(k * between, least)) for k in (LOOSE, TIGHT))
        return cls(START * variances, loose, tight)

    @classmethod
    def even(cls, hessian: ScaledHessian) -> Admm:
        """One metric for all columns, r = 0.1·mean(diag H).

        For linear penalties, whose multipliers don't shrink with the weight: in a loose metric they
        would clip every row to 0 before the other columns can make up for it.
        """
        splitting = Splitting.of(hessian, EVEN * hessian.mean.expand_as(hessian.diagonal))
        return cls(splitting.metric, splitting, splitting)

    def minimise(self, original: Tensor, penalty: LinfPenalty, iterations: int) -> Tensor:
        """Minimise ½(w − ŵ)H(w − ŵ)ᵀ + penalty(w) for every row ŵ of original [..., rows, columns].

        Splits w = z with scaled dual u and over-relaxation 1.6, in the metric R:

            w ← ŵ + (z − u − ŵ)R(H + R)⁻¹,  v ← 1.6w − 0.6z + u,  z ← prox_penalty(v) in R,  u ← v − z

        The first line is a correction to ŵ, which is kind to low-precision products. One product and
        one clip an iteration; z − u = 2z − v, so u is never stored. It starts from the minimum for a
        diagonal Hessian, START·1/Uᵢᵢ²; half of the iterations are made in the loose metric, half in
        the tight one. A change of metric keeps the multiplier R·u.

        Returns:
            z, [..., rows, columns]: clipped, so its largest magnitudes are those that the penalty paid for.
        """
        v, z, target = original.clone(), original.clone(), torch.empty_like(original)
        add_product_ = v.addmm_ if v.ndim == 2 else v.baddbmm_
        update = partial(
            update_, v, z, original, target, penalty.weights,
            group_size=penalty.group_size, squared=penalty.squared,
        )  # fmt: skip
        metric, levels = self.start, None
        update(metric, relaxation=0.0, levels=levels)  # z ← prox(ŵ), v stays
        for splitting, count in ((self.loose, iterations // 2), (self.tight, -(-iterations // 2))):
            v.sub_(z).mul_((metric / splitting.metric)[..., None, :]).add_(z)
            metric = splitting.metric
            torch.sub(z, v, out=target).add_(z).sub_(original)
            for _ in range(count):
                # v ← 1.6w − 0.6z + (v − z) = v + 1.6(w − z); the update adds what is left of it
                add_product_(target, splitting.product, alpha=OVER_RELAXATION)
                levels = update(metric, relaxation=OVER_RELAXATION, levels=levels)
        return z
