"""Numbers that are tuned in float32 and used as the file will hold them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def moved(base: Tensor, unit: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    """b + u·θ, rounded to what `dtype` holds; its gradient by θ is u, as if nothing were rounded.

    A step of θ is so a share of the number, whatever its magnitude, and no sign changes by a small one.

    Args:
        base: b, the numbers as they were saved, float32. unit: u, what θ counts in; broadcasts to b.
        offset: θ, of b's shape; at 0 the result is b itself where `dtype` holds b.

    Source: the straight-through estimator (Bengio, Léonard, Courville, arXiv 1308.3432).
    """
    result: Tensor = _Rounded.apply(base + unit * offset, dtype)  # type: ignore[no-untyped-call]
    return result


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
