"""What an iteration of ADMM does after its product: one Triton kernel on CUDA, plain torch elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor

from magr_gptq.kernels.plain import plain_update_

# a longer row or group does not fit into the registers of one block of threads
LONGEST = 32768


def update_(
    v: Tensor,
    z: Tensor,
    original: Tensor,
    target: Tensor,
    t: Tensor,
    metric: Tensor | None,
    *,
    relaxation: float,
    group_size: int,
    squared: bool,
    levels: Tensor | None,
) -> Tensor:
    """Over-relaxation, threshold, clip and dual update, in place; see `plain_update_`.

    The only place that chooses: the fused kernel for CUDA tensors where triton is installed and a
    row or group has at most 32,768 columns, its plain twin for all others. Both give the same numbers
    up to rounding.
    """
    size = v.shape[1] if group_size == -1 else group_size
    if v.is_cuda and size <= LONGEST and _has_triton():
        # not at the top: triton is optional, and compiles for a device
        from magr_gptq.kernels.fused import fused_update_ as chosen
    else:
        chosen = plain_update_
    return chosen(
        v, z, original, target, t, metric,
        relaxation=relaxation, group_size=group_size, squared=squared, levels=levels,
    )  # fmt: skip


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
