"""Symmetric matrices that should be positive semi-definite, and are but for rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# how often a shift may grow tenfold: the third makes 1 % of the mean diagonal 10 times of it
ATTEMPTS = 4


def normalise(hessian: Tensor) -> tuple[Tensor, float]:
    """H over the power of two that brings the mean of its diagonal into [1/2, 1), in float32; and that power.

    Powers of two, so that nothing is rounded. A diagonal that is zero or not finite is left as it is.
    """
    mean = float(hessian.diagonal().double().mean())
    exponent = math.frexp(mean)[1] if mean > 0 and math.isfinite(mean) else 0
    wide = hessian.to(torch.promote_types(hessian.dtype, torch.float32))
    # in two steps: float32 holds no 2⁻¹⁴⁹'s inverse
    half = exponent // 2
    return (wide * 2.0**-half * 2.0 ** (half - exponent)).float(), 2.0**exponent


def shifted_cholesky(hessian: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of H + diag(shift), with a shift that H's rounding errors may have made grow.

    Args:
        shift: of the diagonal, [columns]; ten times as much where the sum is not positive definite, and
            again, as GPTQ's implementations do with their damping.

    Returns:
        The factor, and the shift that it took.

    Raises:
        ValueError: not even then; the Hessian is no XᵀX.
    """
    for _ in range(ATTEMPTS):
        shifted = hessian.clone()
        shifted.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return factor, shift
        shift = 10 * shift
    raise ValueError(
        f"hessian plus {float(shift.mean()) / 10:.3g} on its diagonal, of mean "
        f"{float(hessian.diagonal().mean()):.3g}, is not positive definite; XᵀX is: accumulate it in "
        "float32, on more calibration text, or add damping to its diagonal"
    )
