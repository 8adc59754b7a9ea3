"""A group's quantization step: the factor by which rounding costs least, zero points that can be stored."""

from __future__ import annotations

import torch
from torch import Tensor


def least_error_factor(
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    factors: Tensor,
    *,
    lowest: int | Tensor,
    highest: int | Tensor,
) -> Tensor:
    """Of the factors on the step, the one whose grid is nearest to the weight: [..., 1].

        argmin_f ‖w − round(w; f·δ)‖², the first of equals

    Args:
        weight: of a group, [..., columns].
        scale, zero: step δ and zero point, [..., 1].
        factors: [..., factors]; where there is one, nothing is tried.
        lowest, highest: code; of every row, [..., 1], where both are tensors.
    """
    if factors.shape[-1] == 1:
        return factors
    errors = []
    for step in torch.split(scale * factors, 1, dim=-1):
        codes = (weight / step).add_(zero).round_().clamp_(lowest, highest)  # type: ignore[arg-type]
        errors.append(codes.sub_(zero).mul_(step).sub_(weight).square_().sum(-1))
    return factors.take_along_dim(torch.stack(errors, -1).argmin(-1, keepdim=True), -1)


def shrink_grid(
    scale: Tensor, zero: Tensor, *, beta: float | Tensor, bits: int, lowest_zero: int = 0
) -> tuple[Tensor, Tensor]:
    """A grid of β times the step whose zero points a packed format can hold.

    The range is shrunk about zero, [β·min, β·max], so β leaves the zero point −min/δ where it is.
    A zero point below lowest_zero is raised to it, and the step is widened so that the largest
    weight stays covered: δ·(2ᵇ − 1)/(2ᵇ − 1 − rise).

    Args:
        scale, zero: step δ and zero point, of any one shape.
        beta: factor on the step, 0 < β ≤ 1 (the paper's β, section 5); a tensor is one a row, [rows, 1].
        lowest_zero: 1 for formats that store zero − 1 in an unsigned field, else 0.
    """
    top = 2**bits - 1
    rise = (lowest_zero - zero).clamp_min(0)
    return scale * beta * top / (top - rise), zero + rise
