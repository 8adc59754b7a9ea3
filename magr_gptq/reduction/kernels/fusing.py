"""Which tensors a Triton kernel can take."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def can_fuse(matrix: Tensor) -> bool:
    """Whether the matrix is float32 on CUDA, and triton is installed."""
    return matrix.is_cuda and matrix.dtype == torch.float32 and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
