"""A Hessian from few tokens, or from a few loud ones, shrunk as an estimate of a covariance should be.

S = XᵀX/n is noisy where n is small, and its noise is worst where S is smallest: a weight that moves along a
direction that no token happened to have costs nothing there. Ledoit and Wolf ("A well-conditioned estimator
for large-dimensional covariance matrices", Journal of Multivariate Analysis 88, 2004) mix S with a multiple
of the identity, and take the share from the tokens themselves. There is no constant to choose.

A Hessian here is H = c·Σₜ xₜxₜᵀ with any factor c > 0 that all tokens have in common: toolkits differ in it,
and nothing depends on it. What has to be collected along with it are the `moments` of the same tokens. They
are sums: those of batches, threads and ranks add up. A batch of layers has one more dimension in front.
"""

from __future__ import annotations

import torch
from torch import Tensor

# a second matrix is never in memory
ROWS_AT_ONCE = 256


def moments(inputs: Tensor) -> Tensor:
    """(n, Σ‖x‖², Σ‖x‖⁴) of the tokens that enter a layer: [3] float64.

    Args:
        inputs: tokens, [..., columns], any floating dtype, in any one unit. They must be those that the
            Hessian is made of: padding that is left out there is left out here.
    """
    wide = torch.promote_types(inputs.dtype, torch.float32)
    squares = torch.linalg.vector_norm(inputs, dim=-1, dtype=wide).double().square()
    return torch.stack([squares.new_tensor(squares.numel()), squares.sum(), squares.square().sum()])


def evenly_loud(tokens: float | Tensor) -> Tensor:
    """`moments` where only the number of tokens is known: of tokens that all have the same norm, [..., 3].

    No tokens have a smaller Σ‖x‖⁴ for their Σ‖x‖², so `shrinkage` then is its lower bound. It is near what
    moments would give where the inputs come from a norm, and far below it where some tokens are loud.
    """
    count = torch.as_tensor(tokens, dtype=torch.float64)
    return torch.stack([count, count, count], dim=-1)


def effective_tokens(moments: Tensor) -> Tensor:
    """(Σ‖x‖²)²/Σ‖x‖⁴, [...] float64: how many tokens of one norm would be as informative; 0 without any.

    At most n. A token whose norm is a hundred times that of the others counts as all of 10,000 of them.
    """
    _, second, fourth = moments.unbind(-1)
    return (second.square() / fourth).nan_to_num(nan=0.0)


def shrinkage(hessian: Tensor, moments: Tensor) -> Tensor:
    """ρ, [...] float64 in [0, 1]: the share of the identity that is nearest to the covariance of all tokens.

    With S = XᵀX/n and μ the mean of its diagonal, ρ is the estimated variance of S over its distance from μI:

        ρ = (Σ‖x‖⁴/n − ‖S‖²_F)/(n − 1) / ‖S − μI‖²_F   clipped to [0, 1]

    (Ledoit and Wolf divide by n in place of n − 1, which is biased, and would leave a single token as it is.)
    In units of the trace it needs no S. With f = ‖H‖²_F/tr(H)², the inverse of the effective number of
    directions, and l = Σ‖x‖⁴/(Σ‖x‖²)², that of `effective_tokens`,

        ρ = (n·l − f)/(n − 1) / (f − 1/columns)

    which is about the number of directions over the number of tokens. With one token or none ρ is 1.
    Neighbours in a text are alike, which makes the true variance a little larger.

    Args:
        hessian: H up to a factor, [..., columns, columns], symmetric; not changed.
        moments: of the same tokens, [..., 3], as `moments` or `evenly_loud` gives them.

    Raises:
        ValueError: moments that no tokens have.
    """
    moments = moments.to(hessian.device, torch.float64)
    tokens, second, fourth = moments.unbind(-1)
    _check(tokens, second, fourth)
    concentration = _concentration(hessian)
    variance = (tokens * fourth / second.square() - concentration) / (tokens - 1)
    distance = concentration - 1 / hessian.shape[-1]
    share = torch.where(distance > 0, variance / distance, 1.0)
    return torch.where((tokens > 1) & (second > 0), share.clamp(0, 1), 1.0)


def shrink_(hessian: Tensor, rho: Tensor) -> Tensor:
    """Replace H by (1 − ρ)H + ρμI, μ the mean of its diagonal, which keeps its trace; in place.

    Args:
        hessian: [..., columns, columns]; changed and returned. rho: [...], as `shrinkage` gives it.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    share = rho.to(hessian.device, hessian.dtype)[..., None]
    target = share * diagonal.double().mean(-1, keepdim=True).to(hessian.dtype)
    hessian.mul_(1 - share[..., None])
    diagonal.add_(target)
    return hessian


def shrink(hessian: Tensor, rho: Tensor) -> Tensor:
    """`shrink_` in new memory."""
    return shrink_(hessian.clone(), rho)


def _concentration(hessian: Tensor) -> Tensor:
    """‖H‖²_F/tr(H)², [...] float64: 1/columns of a multiple of the identity, 1 of rank one."""
    trace = hessian.diagonal(dim1=-2, dim2=-1).double().sum(-1)[..., None, None]
    parts = torch.split(hessian, ROWS_AT_ONCE, dim=-2)
    return torch.stack([(part / trace).square().sum((-2, -1)) for part in parts]).sum(0)


def _check(tokens: Tensor, second: Tensor, fourth: Tensor) -> None:
    """Raise ValueError for what `moments` never gives; rounding of sums is let pass."""
    # Cauchy–Schwarz: (Σ‖x‖²)² ≤ n·Σ‖x‖⁴, and Σ‖x‖⁴ ≤ (Σ‖x‖²)²
    slack = 1 + 1e-3
    possible = (second.square() <= slack * tokens * fourth) & (fourth <= slack * second.square())
    possible &= (tokens >= 0) & (second >= 0) & fourth.isfinite()
    if not possible.all():
        first = (~possible).flatten().int().argmax()
        n, two, four = (float(moment.flatten()[first]) for moment in (tokens, second, fourth))
        raise ValueError(
            f"moments n={n:g}, Σ‖x‖²={two:.4g}, Σ‖x‖⁴={four:.4g} belong to no tokens; "
            "sum what `moments` gives for every batch of the tokens in the Hessian, in float64"
        )
