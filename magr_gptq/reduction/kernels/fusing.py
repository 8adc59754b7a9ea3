"""Which tensors a Triton kernel can take, where it runs, and what does its work where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

# kernels that failed since the last `forget_failures`, with their errors
_failed: dict[str, str] = {}


def can_fuse(matrix: Tensor) -> bool:
    """Whether the matrix is float32 on CUDA, and triton is installed."""
    return matrix.is_cuda and matrix.dtype == torch.float32 and _has_triton()


def fused_or_plain(
    name: str, fused: Callable[[], Tensor], plain: Callable[[], Tensor], matrix: Tensor
) -> Tensor:
    """What the kernel of this name returns on the matrix's device; its plain twin once it has failed.

    A kernel that does not compile, or can't be launched, has changed nothing yet.
    """
    if name not in _failed:
        try:
            # Triton launches on the current device, which need not be the matrix's
            with torch.cuda.device_of(matrix):  # type: ignore[no-untyped-call]
                return fused()
        except torch.OutOfMemoryError:
            raise
        # compilers and drivers raise dozens of unrelated types
        except Exception as error:
            _failed[name] = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            warnings.warn(
                f"magr: the Triton kernel {name} failed ({_failed[name]}); plain torch does its work now",
                stacklevel=3,
            )
    return plain()


def failed_kernels() -> dict[str, str]:
    """The kernels whose work plain torch does, with the errors that they met."""
    return dict(_failed)


def forget_failures() -> None:
    """Let every kernel be tried again: a run begins."""
    _failed.clear()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
