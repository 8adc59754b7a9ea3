"""A Hessian of few tokens, shrunk as an estimate of correlations should be.

XᵀX/n is noisy where the tokens n are few. Below n = columns it even has directions that no token happened to
have: a weight that moves along them costs nothing there, and much on other text. What tokens say of single
columns is certain long before what they say of pairs, so pairs are what is shrunk:

    H ← (1 − ρ)H + ρ·diag(H)

(J. Schäfer and K. Strimmer, "A shrinkage approach to large-scale covariance matrix estimation", Statistical
Applications in Genetics and Molecular Biology 4, 2005, after O. Ledoit and M. Wolf, Journal of Multivariate
Analysis 88, 2004.) The share ρ follows from the Hessian and the number of its tokens; there is no constant to
choose. Nothing depends on the Hessian's factor, nor on the scale of single columns: a column a thousand times
as loud as the others, as attention sinks make them, does not drown them as a multiple of the identity would.

A handful of tokens is not certain of single columns either: one that they happened to leave quiet is not
free. So a part λ ≤ ρ of that share goes to the mean of the diagonal, much as R. Opgen-Rhein and K. Strimmer
shrink variances (Statistical Applications in Genetics and Molecular Biology 6, 2007; they take the median):

    H ← (1 − ρ)H + (ρ − λ)·diag(H) + λ·mean(diag(H))·I
"""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import diagonal_of

# a second matrix is never in memory
ROWS_AT_ONCE = 256


def shrinkage(hessian: Tensor, tokens: float) -> Tensor:
    """ρ, [...] float64 in [0, 1]: the share at which the correlations are nearest to those of all tokens.

    With r the correlation of two columns, (1 + r²)/n is the variance of such an estimate from n independent
    Gaussian tokens, and r² is what shrinking it away would cost. Summed over all pairs, the least expected
    error is at

        ρ = Σ(1 + r²)/n / Σr² = (1 + 1/mean(r²))/n   at most 1

    which is about the effective number of directions over the number of tokens.

    Args:
        hessian: XᵀX up to a factor, [..., columns, columns], symmetric; not changed. Columns that no input
            reached count as none.
        tokens: n, the rows of X.
    """
    diagonal = diagonal_of(hessian).double()
    inverse = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()
    live = (diagonal > 0).sum(-1)
    mean = (_scaled_squares(hessian, inverse) - live) / (live * (live - 1)).clamp_min(1)
    share: Tensor = (1 + 1 / mean.clamp_min(0)) / tokens
    return share.clamp_max(1)


def shrinkage_of_halves(first: Tensor, second: Tensor) -> Tensor:
    """ρ, [] float64 in [0, 1], from Hessians of two halves of the documents, as far as they disagree.

    Tokens of one document are alike, so that n tokens say less than n independent ones. Documents are not:
    what both halves say of a pair of columns is no noise. With r, r' and r'' the correlations of all tokens,
    of the first and of the second half, r'·r'' has the expectation of the true r², and

        ρ = 1 − Σr'r'' / Σr²

    is the same ratio of variance to square as in `shrinkage`.

    Args:
        first, second: sums xxᵀ over a half each, up to one factor, [columns, columns], symmetric.
    """
    whole = first + second
    power = _agreement(whole, whole)
    # without any correlation there is nothing to keep
    return torch.where(power > 0, 1 - _agreement(first, second) / power, 1.0).clamp(0, 1)


def of_half(rho: Tensor) -> Tensor:
    """2ρ/(1 + ρ): the share for half of the tokens, which have twice the noise, where that of all is ρ."""
    return 2 * rho / (1 + rho)


def _agreement(first: Tensor, second: Tensor) -> Tensor:
    """Σ r'_ij·r''_ij over i ≠ j, of two matrices' correlations, [] float64."""
    diagonals = [diagonal_of(matrix).double() for matrix in (first, second)]
    inverse = torch.stack([torch.where(d > 0, d, torch.inf).rsqrt() for d in diagonals]).prod(0)
    parts = zip(*(torch.split(x, ROWS_AT_ONCE) for x in (first, second, inverse)), strict=True)
    total = torch.stack([(a.double() * b * inverse * rows[:, None]).sum() for a, b, rows in parts]).sum()
    return total - (inverse > 0).sum()


def shrink_(hessian: Tensor, rho: Tensor) -> Tensor:
    """Replace H by (1 − ρ)H + ρ·diag(H), in place; the diagonal stays as it is to the bit.

    Args:
        hessian: [..., columns, columns]; changed and returned. rho: [...], as `shrinkage` gives it.
    """
    diagonal = diagonal_of(hessian)
    kept = diagonal.clone()
    hessian.mul_((1 - rho).to(hessian)[..., None, None])
    diagonal.copy_(kept)
    return hessian


def even_(hessian: Tensor, rho: Tensor, tokens: float) -> Tensor:
    """Move the diagonal towards its mean by a share λ of at most ρ, in place; pairs stay as they are.

    2h²/n is the variance of a diagonal entry h from n independent Gaussian tokens, and (h − mean)² is what
    moving it to the mean would cost. The least expected error is at λ = (2/n)Σh² / Σ(h − mean)². Up to ρ the
    whole stays positive semidefinite, and its trace what it was.

    Args:
        hessian: as `shrink_` returns it, [..., columns, columns]; changed and returned. Columns that no input
            reached count as none. rho: [...], the share that it was shrunk by. tokens: n.
    """
    diagonal = diagonal_of(hessian)
    values = diagonal.double()
    live = values > 0
    mean = values.sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp_min(1)
    away = torch.where(live, values - mean, 0)
    share = 2 / tokens * values.square().sum(-1) / away.square().sum(-1)
    # 0/0 where no column is live
    share = torch.minimum(share.nan_to_num(0, posinf=torch.inf), rho.to(values))
    diagonal.sub_(share[..., None] * away)
    return hessian


def _scaled_squares(hessian: Tensor, inverse: Tensor) -> Tensor:
    """Σ_ij (d_i H_ij d_j)² with d the inverse roots of the diagonal, [...] float64."""
    parts = zip(
        torch.split(hessian, ROWS_AT_ONCE, dim=-2), torch.split(inverse, ROWS_AT_ONCE, dim=-1), strict=True
    )
    found = [(part * inverse[..., None, :] * rows[..., None]).square().sum((-2, -1)) for part, rows in parts]
    return torch.stack(found).sum(0)
