"""The quantization grid that MagR's weight is rounded to: a shorter step, zero points that can be stored."""

from __future__ import annotations

from torch import Tensor


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
