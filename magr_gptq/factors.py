"""The factor on a group's quantization step by which rounding its weights costs least."""

from __future__ import annotations

import torch
from torch import Tensor


def least_error_factor(
    weight: Tensor, scale: Tensor, zero: Tensor, factors: Tensor, *, lowest: int, highest: int
) -> Tensor:
    """Of the factors on the step, the one whose grid is nearest to the weight: [..., 1].

        argmin_f ‖w − round(w; f·δ)‖², the first of equals

    Args:
        weight: of a group, [..., columns].
        scale, zero: step δ and zero point, [..., 1].
        factors: [..., factors]; where there is one, nothing is tried.
        lowest, highest: code.
    """
    if factors.shape[-1] == 1:
        return factors
    errors = []
    for step in torch.split(scale * factors, 1, dim=-1):
        codes = (weight / step).add_(zero).round_().clamp_(lowest, highest)
        errors.append(codes.sub_(zero).mul_(step).sub_(weight).square_().sum(-1))
    return factors.take_along_dim(torch.stack(errors, -1).argmin(-1, keepdim=True), -1)
