"""Moments of the tokens that enter a layer, counted where the toolkit sums its Hessian."""

from __future__ import annotations

from torch import Tensor

from magr_gptq.reduction.shrinkage import moments


def counted(before: Tensor | None, inputs: Tensor) -> Tensor:
    """The moments so far, with those of more inputs [..., columns]: [3] float64, where the first were."""
    try:
        found = moments(inputs)
    except TypeError:
        # some devices lack float64
        found = moments(inputs.cpu())
    return found if before is None else before + found.to(before.device)
