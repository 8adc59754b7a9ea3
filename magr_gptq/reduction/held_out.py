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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import diagonal_of, normalise, shifted_cholesky
from magr_gptq.reduction.shrinkage import of_half, shrink_

# so many columns are all asked; of more, random signs stand for all
COLUMNS, PROBES, SEED = 256, 32, 0
# below this share there are so many tokens that none is felt
LEAST = 0.005
# of the mean diagonal: without it float32 would not factor a matrix of few tokens
RIDGE = 1e-6


@torch.no_grad()
def held_out_share(first: Tensor, second: Tensor, rho: Tensor) -> Tensor:
    """ρ, doubled or halved for as long as each half's regressions then leave less of the other: [] float64.

    Between the best of these and its neighbours the least is that of a parabola in log ρ, so that where two
    are as good the share does not depend on which of them is a hair better.

    Args:
        first, second: sums xxᵀ over half of the documents each, up to one factor, [columns, columns].
        rho: the share for all of them, [] float64, to begin with; a small one stays, as 1 does.
    """
    if not LEAST <= rho < 1:
        return rho
    # the order in which columns are rounded
    order = (diagonal_of(first) + diagonal_of(second)).argsort(descending=True)
    halves = [normalise(half)[0][order][:, order] for half in (first, second)]
    found: dict[int, float] = {}

    def left(doublings: int) -> float:
        if doublings not in found:
            found[doublings] = _left(halves, (rho * 2.0**doublings).clamp_max(1))
        return found[doublings]

    best = 0
    for step in (1, -1):
        while LEAST <= rho * 2.0**best < 1 and left(best + step) < left(best):
            best += step
    share: Tensor = rho * 2.0**best
    # beyond 1 there is none, so that the neighbour there is nearer than a doubling
    return share * 2.0 ** _vertex(best, found) if share <= 0.5 else share.clamp_max(1)


def _vertex(best: int, found: Mapping[int, float]) -> float:
    """Where a parabola through the best and its neighbours is least, −½ to ½ from it; 0 where one lacks."""
    if not {best - 1, best + 1} <= found.keys():
        return 0.0
    before, after = found[best - 1] - found[best], found[best + 1] - found[best]
    return (before - after) / (before + after) / 2 if before + after > 0 else 0.0


def _left(halves: Sequence[Tensor], rho: Tensor) -> float:
    """The share that both leave of each other, added up, where all are shrunk by ρ."""
    share = of_half(rho)
    return sum(float(left_over(a, b, share) / diagonal_of(b).sum()) for a, b in (halves, halves[::-1]))


def left_over(hessian: Tensor, other: Tensor, rho: Tensor) -> Tensor:
    """Σ_j (L⁻¹H'L⁻ᵀ)_jj, [] float64; see above.

    Of many columns it is the mean of ‖zL⁻¹‖²_H' over z of random signs (M. Hutchinson, Communications in
    Statistics 18, 1989).

    Args:
        hessian, other: H, of which correlations are shrunk by ρ, and H', [columns, columns] float32.
    """
    # the last column comes first
    shrunk = shrink_(hessian.flip(0, 1), rho)
    ridge = (RIDGE * diagonal_of(shrunk).mean()).expand(len(shrunk))
    factor, _ = shifted_cholesky(shrunk.clone, ridge)
    factor = factor / diagonal_of(factor)
    rows = torch.linalg.solve_triangular(factor.mT, _probes(factor), upper=True, unitriangular=True)
    found: Tensor = torch.linalg.vecdot(rows, other.flip(0, 1) @ rows, dim=0).double().mean()
    return found


def _probes(like: Tensor) -> Tensor:
    """Vectors z of which the mean of zzᵀ is I, or is so on average: [columns, probes]."""
    columns = len(like)
    if columns <= COLUMNS:
        return torch.eye(columns, dtype=like.dtype, device=like.device).mul_(columns**0.5)
    # the same on every device
    signs = torch.randint(2, (columns, PROBES), generator=torch.Generator().manual_seed(SEED))
    return (2 * signs - 1).to(like)
