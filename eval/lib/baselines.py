"""What magr_gptq is measured against, written from the formulas: readable first, fast second.

The paper's MagR (arXiv 2406.00800), reference minimisers for both penalties, the derived
penalty's weight, GPTQ and rounding to nearest. Rows are output channels, Ŵ is the weight as given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

DAMPING = 0.01
BLOCK = 128
# the duality gap costs about as much as a step
STEPS_BETWEEN_CHECKS = 50


def grouped(weight: Tensor, group_size: int) -> Tensor:
    """[rows, groups, size] view of the rows' groups; zeros fill a shorter last group."""
    columns = weight.shape[-1]
    size = columns if group_size == -1 else group_size
    return pad(weight, (0, -columns % size)).unflatten(-1, (-1, size))


def ungrouped(groups: Tensor, columns: int) -> Tensor:
    """The inverse of `grouped` for rows of so many columns."""
    return groups.flatten(-2)[..., :columns]


def sorted_threshold(magnitudes: Tensor, t: Tensor, squared: bool) -> Tensor:
    """θ ≥ 0 with Σ max(aᵢ − θ, 0) = t, or = t·θ where squared; [..., 1].

    With the k largest active, θₖ = (Sₖ − t)/k, or Sₖ/(k + t); the active ones are those with aₖ > θₖ,
    which hold for a prefix of the descending order.
    """
    descending = magnitudes.sort(-1, descending=True).values
    sums = descending.cumsum(-1)
    k = torch.arange(1, sums.shape[-1] + 1, dtype=sums.dtype, device=sums.device)
    candidates = sums / (k + t) if squared else (sums - t) / k
    last = (descending > candidates).sum(-1, keepdim=True) - 1
    return candidates.gather(-1, last.clamp_min(0)).clamp_min(0)


def project_l1_ball(v: Tensor, radius: Tensor) -> Tensor:
    """The nearest point to v with ‖·‖₁ ≤ radius, along the last dimension, by sorting."""
    theta = sorted_threshold(v.abs(), radius, squared=False)
    return v.sign() * (v.abs() - theta).clamp_min(0)


@dataclass(frozen=True)
class Penalty:
    """Σ_g weight_g·‖w_g‖∞, or Σ_g ½·weight_g·‖w_g‖∞² where squared.

    weight: one number, or one a group.
    """

    weight: float | Tensor
    squared: bool
    group_size: int = -1

    def of(self, rows: Tensor) -> Tensor:
        """The penalty of every row."""
        largest = grouped(rows, self.group_size).abs().amax(-1)
        return (self.per_group(rows) * (largest.square() / 2 if self.squared else largest)).sum(-1)

    def prox(self, v: Tensor, step: float) -> Tensor:
        """argmin_w step·penalty(w) + ½‖w − v‖², row by row."""
        groups = grouped(v, self.group_size)
        t = step * self.per_group(v).unsqueeze(-1)
        if self.squared:
            theta = sorted_threshold(groups.abs(), t, squared=True)
            return ungrouped(groups.clamp(-theta, theta), v.shape[-1])
        # Moreau: the prox of a norm is what projection onto the dual norm's ball leaves over
        return ungrouped(groups - project_l1_ball(groups, t), v.shape[-1])

    def lower_bound(self, rows: Tensor, original: Tensor, hessian: Tensor) -> Tensor:
        """Below every row's least objective, and equal to it at the minimum: Fenchel's dual at −gradient."""
        difference = original - rows
        dual = difference @ hessian
        sizes = grouped(dual, self.group_size).abs().sum(-1)
        weights = self.per_group(rows)
        linear, quadratic = (dual * original).sum(-1), (dual * difference).sum(-1)
        if self.squared:
            return linear - quadratic / 2 - (sizes.square() / (2 * weights)).sum(-1)
        # the norm's conjugate is finite on its dual ball only: shrink the dual point into it
        shrink = (weights / sizes).amin(-1).clamp_max(1)
        return shrink * linear - shrink.square() * quadratic / 2

    def per_group(self, like: Tensor) -> Tensor:
        """The weight of every group of such rows, [groups]."""
        return torch.as_tensor(self.weight, dtype=like.dtype, device=like.device).expand(
            grouped(like[:1], self.group_size).shape[1]
        )


def objective(rows: Tensor, original: Tensor, hessian: Tensor, penalty: Penalty) -> Tensor:
    """½(w − ŵ)H(w − ŵ)ᵀ + penalty(w) of every row."""
    difference = rows - original
    return (difference @ hessian * difference).sum(-1) / 2 + penalty.of(rows)


def largest_eigenvalue(hessian: Tensor) -> float:
    """λmax of a symmetric matrix."""
    return float(torch.linalg.eigvalsh(hessian)[-1])


def proximal_descent(weight: Tensor, hessian: Tensor, penalty: Penalty, steps: int) -> Tensor:
    """Proximal gradient descent from Ŵ with step 1/λmax."""
    step = 1 / largest_eigenvalue(hessian)
    rows = weight
    for _ in range(steps):
        rows = penalty.prox(rows - step * (rows - weight) @ hessian, step)
    return rows


def paper_magr(
    weight: Tensor, hessian: Tensor, alpha: float, steps: int = 150, group_size: int = -1
) -> Tensor:
    """The paper's MagR: α‖w‖∞ a row or group with H scaled to λmax = 1, so many steps of length 1."""
    scaled = hessian / largest_eigenvalue(hessian)
    penalty = Penalty(alpha, squared=False, group_size=group_size)
    rows = weight
    for _ in range(steps):
        rows = penalty.prox(rows - (rows - weight) @ scaled, 1.0)
    return rows


def accelerated(
    weight: Tensor, hessian: Tensor, penalty: Penalty, steps: int, tolerance: float = 0.0
) -> Tensor:
    """FISTA from Ŵ in float64, each row restarted where its momentum points uphill.

    Stops early when the rows together cannot gain another `tolerance` times what they gained so
    far, by the duality gap; 0 makes all the steps.
    """
    original, hessian = weight.double(), hessian.double()
    step = 1 / largest_eigenvalue(hessian)
    start = objective(original, original, hessian, penalty)
    rows = ahead = original
    momentum = original.new_ones(len(original), 1)
    for count in range(1, steps + 1):
        new = penalty.prox(ahead - step * (ahead - original) @ hessian, step)
        uphill = ((ahead - new) * (new - rows)).sum(-1, keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        ahead = new + torch.where(uphill, 0.0, (momentum - 1) / following) * (new - rows)
        rows, momentum = new, following
        if tolerance > 0 and count % STEPS_BETWEEN_CHECKS == 0:
            value = objective(rows, original, hessian, penalty)
            gap = value - penalty.lower_bound(rows, original, hessian)
            if float(gap.sum()) <= tolerance * float((start - value).sum()):
                break
    return rows


def derived_penalty(factor: Tensor, bits: int, group_size: int = -1, strength: float = 1.0) -> Penalty:
    """Σ_g ½γ_g‖w_g‖∞² with γ_g = c·Σ_{i in g} 1/Uᵢᵢ² / (3(2ᵇ − 1)²), U as `inverse_factor` gives it."""
    errors = grouped(factor.diagonal().pow(-2).unsqueeze(0), group_size).sum(-1).squeeze(0)
    return Penalty(strength * errors / (3 * (2**bits - 1) ** 2), squared=True, group_size=group_size)


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """U, upper triangular, with UᵀU = (H + damping·mean(diag H)·I)⁻¹; a 0 on H's diagonal counts as 1."""
    diagonal = hessian.diagonal()
    filled = hessian + torch.diag((diagonal == 0).to(hessian))
    damped = filled + damping * filled.diagonal().mean() * torch.eye(len(filled)).to(filled)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def grid_step(weight: Tensor, bits: int, beta: float | Tensor = 1.0) -> Tensor:
    """δ = β·2·max|w|/(2ᵇ − 1) along the last dimension; 2β/(2ᵇ − 1) where all weights are 0."""
    largest = weight.abs().amax(-1, keepdim=True)
    return 2 * beta / (2**bits - 1) * torch.where(largest > 0, largest, 1.0)


def best_step(weight: Tensor, bits: int, factors: Tensor) -> Tensor:
    """`grid_step` with the factor of least squared rounding error, of [rows, factors]."""
    steps = grid_step(weight, bits) * factors
    errors = [
        (round_to_grid(weight, step, bits) - weight).square().sum(-1)
        for step in torch.split(steps, 1, dim=-1)
    ]
    return steps.take_along_dim(torch.stack(errors, dim=-1).argmin(-1, keepdim=True), -1)


def round_to_grid(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """The nearest of δ·(code − 2ᵇ⁻¹), code 0 … 2ᵇ − 1."""
    half = 2 ** (bits - 1)
    return (weight / step).round().clamp(-half, half - 1) * step


def round_to_nearest(weight: Tensor, bits: int, group_size: int = -1, beta: float = 1.0) -> Tensor:
    """RTN: every weight to the nearest point of its row's or group's grid."""
    groups = grouped(weight, group_size)
    return ungrouped(round_to_grid(groups, grid_step(groups, bits, beta), bits), weight.shape[-1])


def gptq_round(
    weight: Tensor, factor: Tensor, bits: int, group_size: int = -1, beta: float | Tensor = 1.0
) -> Tensor:
    """GPTQ: round column by column, each column's error spread over those after it.

    As the toolkits do without activation order: a group's grid is taken when its first column
    comes up, from weights that carry the errors of earlier blocks only.

    Args:
        weight: [rows, columns].
        factor: U of `inverse_factor`.
        beta: factor on the step, one number, or those that each group of a row chooses from, [rows, factors].
    """
    return gptq_grid(weight, factor, bits, group_size, beta)[0]


def gptq_grid(
    weight: Tensor, factor: Tensor, bits: int, group_size: int = -1, beta: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """`gptq_round`, and the step of every group, [rows, groups]."""
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    factors = torch.atleast_2d(torch.as_tensor(beta, dtype=weight.dtype, device=weight.device)).expand(
        len(weight), -1
    )
    # a column's weights lie together; a copy even where one row already does
    work = weight.T.clone(memory_format=torch.contiguous_format)
    result = torch.empty_like(work)
    step, steps = torch.empty_like(work[0]), []
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block, errors = work[start:end].clone(), torch.empty_like(work[start:end])
        for i in range(start, end):
            if i % size == 0:
                step = best_step(work[i : i + size].T, bits, factors).squeeze(-1)
                steps.append(step)
            current = block[i - start]
            result[i] = round_to_grid(current, step, bits)
            error = torch.div(current - result[i], factor[i, i], out=errors[i - start])
            block[i - start + 1 :].addr_(factor[i, i + 1 : end], error, alpha=-1)
        work[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return result.T.contiguous(), torch.stack(steps, dim=1)


def proxy_loss(quantized: Tensor, original: Tensor, hessian: Tensor) -> float:
    """tr((Ŵ − Q)H(Ŵ − Q)ᵀ) / tr(ŴHŴᵀ)."""
    difference = quantized - original
    return float((difference @ hessian * difference).sum() / (original @ hessian * original).sum())
