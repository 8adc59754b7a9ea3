"""What `reduce` refuses: every message has the value and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import diagonal_of

# squares of larger weights, summed over columns, would overflow float32
LARGEST_WEIGHT = 1e13


def check_arguments(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int, order: Tensor | None
) -> None:
    """Raise ValueError for shapes, dtypes and settings that make no sense."""
    if weight.ndim not in (2, 3) or not weight.numel():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; give a matrix [out, in], or several [batch, out, in]"
        )
    for name, tensor in (("weight", weight), ("hessian", hessian)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; give a floating dtype")
    *batch, _, columns = weight.shape
    if hessian.shape != (*batch, columns, columns):
        raise ValueError(
            f"hessian has shape {tuple(hessian.shape)}; this weight needs {(*batch, columns, columns)}"
        )
    if bits not in range(2, 9):
        raise ValueError(f"bits={bits!r}; give a whole number from 2 to 8")
    if group_size != -1 and group_size < 1:
        raise ValueError(f"group_size={group_size!r}; give at least 1, or -1 for one group a row")
    if order is not None and not _permutes(order, (*batch, columns)):
        raise ValueError(f"order is not a permutation of the {columns} columns")


def check_values(weight: Tensor, hessian: Tensor) -> None:
    """Raise ValueError for numbers that no calibration run gives."""
    # without a mask of the tensor's size; NaN passes through
    largest = {
        name: torch.stack([extreme.abs() for extreme in tensor.aminmax()]).amax()
        for name, tensor in (("weight", weight), ("hessian", hessian))
    }
    for name, value in largest.items():
        if not value.isfinite():
            raise ValueError(f"{name} holds NaN or infinity; check the calibration run in float32")
    lowest, highest = diagonal_of(hessian).amin(-1), diagonal_of(hessian).amax(-1)
    hollow = (highest == 0) & ((hessian.amax((-2, -1)) > 0) | (hessian.amin((-2, -1)) < 0))
    wrong = (lowest < 0) | hollow
    if wrong.any():
        first = wrong.flatten().int().argmax()
        raise ValueError(
            f"hessian has {float(lowest.flatten()[first]):.3g} on its diagonal, "
            f"{float(highest.flatten()[first]):.3g} at most; "
            "XᵀX has none below 0, and is 0 where its diagonal is"
        )
    if largest["weight"] > LARGEST_WEIGHT:
        raise ValueError(
            f"weight holds {float(largest['weight']):.3g}; scale it down to at most {LARGEST_WEIGHT:g}"
        )


def _permutes(order: Tensor, shape: tuple[int, ...]) -> bool:
    every = torch.arange(shape[-1], device=order.device)
    return order.shape == shape and bool((order.sort(-1).values == every).all())
