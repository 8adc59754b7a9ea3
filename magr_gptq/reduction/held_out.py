"""The share of shrinkage that rounding wants, which other documents tell.

`shrinkage_of_halves` is nearest to the true correlations, where all pairs count alike. GPTQ uses them for one
thing: the error of a column is made up for in those that are rounded later, by the regression of its inputs
on theirs. Let H = LDLᵀ, from the last column to the first. Errors of variance 1 then leave

    Σ_j (L⁻¹H'L⁻ᵀ)_jj

on other documents, whose Hessian is H': what of each input the later ones do not tell there. Where a few
directions are strong and all others faint, as in the last layer of a gated MLP, that wants several times the
share that all pairs want; where nothing is faint it wants less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import diagonal_of, normalise, shifted_cholesky
from magr_gptq.reduction.shrinkage import of_half, shrink_

# random signs that stand for all columns
PROBES = 32
SEED = 0
# below this share there are so many tokens that none is felt
LEAST = 0.005
# of the mean diagonal: without it float32 would not factor a matrix of few tokens
RIDGE = 1e-6


@torch.no_grad()
def held_out_share(first: Tensor, second: Tensor, rho: Tensor) -> Tensor:
    """ρ, doubled or halved for as long as each half's regressions then leave less of the other: [] float64.

    Args:
        first, second: sums xxᵀ over half of the documents each, up to one factor, [columns, columns].
        rho: the share for all of them, [] float64, to begin with; a small one stays, as 1 does.
    """
    if not LEAST <= rho < 1:
        return rho
    # the order in which columns are rounded
    order = (diagonal_of(first) + diagonal_of(second)).argsort(descending=True)
    halves = [normalise(half)[0][order][:, order] for half in (first, second)]
    left = _left(halves, rho)
    larger = _least(halves, rho, left, 2.0)
    return _least(halves, rho, left, 0.5) if larger is rho else larger


def _least(halves: list[Tensor], rho: Tensor, left: Tensor, factor: float) -> Tensor:
    """ρ times the factor as often as less is left by it, on and on."""
    while LEAST <= rho < 1:
        tried = (factor * rho).clamp_max(1)
        found = _left(halves, tried)
        if found >= left:
            break
        rho, left = tried, found
    return rho


def _left(halves: list[Tensor], rho: Tensor) -> Tensor:
    """What both leave of each other where all are shrunk by ρ."""
    share = of_half(rho)
    return torch.stack([left_over(a, b, share) for a, b in (halves, halves[::-1])]).sum()


def left_over(hessian: Tensor, other: Tensor, rho: Tensor) -> Tensor:
    """Σ_j (L⁻¹H'L⁻ᵀ)_jj, [] float64; see above.

    It is the mean of ‖zL⁻¹‖²_H' over z of random signs (M. Hutchinson, Communications in Statistics 18,
    1989).

    Args:
        hessian, other: H, of which correlations are shrunk by ρ, and H', [columns, columns] float32.
    """
    # the last column comes first
    shrunk = shrink_(hessian.flip(0, 1), rho)
    ridge = (RIDGE * diagonal_of(shrunk).mean()).expand(len(shrunk))
    factor, _ = shifted_cholesky(shrunk.clone, ridge)
    factor = factor / diagonal_of(factor)
    # the same on every device
    signs = torch.randint(2, (len(factor), PROBES), generator=torch.Generator().manual_seed(SEED))
    rows = torch.linalg.solve_triangular(
        factor.mT, (2 * signs - 1).to(factor), upper=True, unitriangular=True
    )
    left: Tensor = torch.linalg.vecdot(rows, other.flip(0, 1) @ rows, dim=0).double().mean()
    return left
