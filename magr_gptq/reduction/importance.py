"""How much of an error in one token's query, key or value attention hands on.

A token that many others attend to, as all do to the first one of a text, has its errors in the outputs of all
of them. Counted once like any other it is lost among thousands. So what goes into attention is rounded for
tokens by their importance (RSQ, Y.-L. Sung et al., arXiv 2503.01820, takes the sum of what a token's key is
attended to; this is what the module itself makes of an error, whatever kind of attention it is).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def importance(
    returned: Tensor, outputs: Sequence[Sequence[Tensor]], cotangent: Tensor
) -> list[Tensor | None]:
    """w_t = (Σ_layers ‖∂⟨u, f⟩/∂y_t‖²)^½ ≥ 0, [..., tokens] float32, of layers that share their input.

    For u ~ N(0, I) the squares have the expectation ‖∂f/∂y_t‖²_F: what f loses of an error in y_t of
    variance 1. The root lies between that and counting all tokens alike. By the square itself the sum would
    be made of a few tokens, and its noise be large.

    Args:
        returned: f, what a module returns, with its graph. outputs: y of layers inside, [..., tokens,
            features]; those that share their input together. cotangent: u, of f's shape.

    Returns:
        One for each of `outputs`; None where f does not depend on them.

    Raises:
        RuntimeError: torch's, where something on the way has no gradient.
    """
    flat = [output for together in outputs for output in together]
    gradients = iter(torch.autograd.grad(returned, flat, cotangent.to(returned), allow_unused=True))
    return [_root([next(gradients) for _ in together]) for together in outputs]


def by_document(importance: Tensor, kept: Tensor | None = None) -> Tensor:
    """w over its mean in each document, so that each counts as much as its tokens are: [documents, tokens].

    1 throughout a document where w is 0 or not finite.

    Args:
        importance: w, [documents, tokens]. kept: of that shape, false where a token is padding.
    """
    counted = importance if kept is None else torch.where(kept, importance, 0)
    tokens = importance.shape[1] if kept is None else kept.sum(1, keepdim=True)
    mean = counted.sum(1, keepdim=True) / tokens
    usable = (mean > 0) & mean.isfinite()
    return torch.where(usable, importance / mean, 1.0)


def _root(gradients: Sequence[Tensor | None]) -> Tensor | None:
    squares = [gradient.float().square().sum(-1) for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum(0).sqrt() if squares else None
