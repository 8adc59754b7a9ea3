"""Over-relaxation, threshold, clip and dual update in one Triton kernel.

Of device memory, v, z and ŵ are read once and v, z and target written once; while Newton's method runs,
v stays in registers. The metric, and ŵ the second time, come from a cache. In a batch every layer has
its own metric.
"""

# Triton's decorator and its language carry no types
# mypy: disable-error-code="untyped-decorator,no-untyped-def"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from magr_gptq.reduction.groups import group_count

# short groups share a program until it has this many elements
TILE = 4096
ELEMENTS_PER_WARP = 512
# a block has at most 1,024 threads: AMD's warps have 64, NVIDIA's 32
MOST_WARPS = 16 if torch.version.hip else 32


def fused_update_(
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
    """The same as `plain_update_`, in one pass; arguments and result are the same.

    Each program keeps whole rows, or groups, in registers: it reads v, z and ŵ, finds θ by Newton's
    method, and writes v, z and target. Each group stops when its own active set stays as it is.

    Raises:
        ValueError: a matrix that is not contiguous float32.
    """
    _check({"v": v, "z": z, "original": original, "target": target})
    *shape, layer_rows, columns = v.shape
    rows = math.prod(shape) * layer_rows
    size = columns if group_size == -1 else min(group_size, columns)
    groups = group_count(columns, group_size)
    shared = t.expand(*shape, layer_rows, groups).flatten(0, -2)
    found = torch.empty(*shape, layer_rows, groups, dtype=v.dtype, device=v.device)
    length = triton.next_power_of_2(size)
    together = max(1, TILE // length)
    _update_kernel[(triton.cdiv(rows * groups, together),)](
        v, z, original, target, shared,
        # some pointer, not read, where there is no metric or no level to start from
        v if metric is None else metric.contiguous(), found if levels is None else levels, found,
        rows * groups, groups, layer_rows, columns, size, shared.stride(0), shared.stride(1), relaxation,
        SQUARED=squared, WEIGHTED=metric is not None, WARM=levels is not None,
        TOGETHER=together, LENGTH=length,
        num_warps=min(MOST_WARPS, max(4, together * length // ELEMENTS_PER_WARP)),
    )  # fmt: skip
    return found


def _check(matrices: dict[str, Tensor]) -> None:
    for name, matrix in matrices.items():
        if matrix.dtype != torch.float32 or not matrix.is_contiguous():
            raise ValueError(
                f"{name} is {matrix.dtype} with strides {matrix.stride()}; give contiguous float32"
            )


@triton.jit
def _update_kernel(
    v_ptr, z_ptr, original_ptr, target_ptr, t_ptr, metric_ptr, levels_ptr, found_ptr,
    count, groups, layer_rows, columns, size, t_row_stride, t_group_stride, relaxation,
    SQUARED: tl.constexpr, WEIGHTED: tl.constexpr, WARM: tl.constexpr,
    TOGETHER: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    # groups are numbered along the rows; a whole row is one group
    index = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
    live = index < count
    row, group = index // groups, index % groups
    inside = tl.arange(0, LENGTH)[None, :]
    column = group[:, None] * size + inside
    mask = live[:, None] & (inside < size) & (column < columns)
    offset = row.to(tl.int64)[:, None] * columns + column
    metric_ptr += (row // layer_rows)[:, None] * columns + column

    original = tl.load(original_ptr + offset, mask=mask, other=0.0)
    z = tl.load(z_ptr + offset, mask=mask, other=0.0)
    v = tl.load(v_ptr + offset, mask=mask, other=0.0) + relaxation * (original - z)
    t = tl.load(t_ptr + row * t_row_stride + group * t_group_stride, mask=live, other=1.0)
    theta = tl.full([TOGETHER], 0.0, tl.float32)
    if WARM:
        theta = tl.load(levels_ptr + index, mask=live, other=0.0)

    theta, _ = _newton_step(v, metric_ptr, mask, theta, t, SQUARED, WEIGHTED)
    mass = tl.full([TOGETHER], float("inf"), tl.float32)
    moving = 1
    while moving > 0:
        proposed, now = _newton_step(v, metric_ptr, mask, theta, t, SQUARED, WEIGHTED)
        # from the left the steps only climb and the active mass only falls; no NaN can keep this going
        changed = now < mass
        theta = tl.where(changed, tl.maximum(theta, proposed), theta)
        mass = now
        moving = tl.max(changed.to(tl.int32), axis=0)

    limit = theta[:, None]
    z = tl.minimum(tl.maximum(v, -limit), limit)
    tl.store(v_ptr + offset, v, mask=mask)
    tl.store(z_ptr + offset, z, mask=mask)
    original = tl.load(original_ptr + offset, mask=mask, other=0.0)
    tl.store(target_ptr + offset, 2 * z - v - original, mask=mask)
    tl.store(found_ptr + index, theta, mask=live)


@triton.jit
def _newton_step(v, metric_ptr, mask, theta, t, SQUARED: tl.constexpr, WEIGHTED: tl.constexpr):
    # what is outside the mask is 0: never above a threshold, never counted
    excess = tl.maximum(tl.abs(v) - theta[:, None], 0.0)
    # read anew each time: it is shared by all rows, so it lies in a cache, and registers are scarce
    metric = tl.load(metric_ptr, mask=mask, other=0.0) if WEIGHTED else 1.0
    total = tl.sum(metric * excess, axis=1)
    mass = tl.sum(tl.where(excess > 0, metric, 0.0), axis=1)
    if SQUARED:
        # with nothing active and t = 0 the step is 0/0
        proposed = theta + (total - t * theta) / tl.maximum(mass + t, 1.1754943508222875e-38)
    else:
        # a start above every magnitude has no slope to follow: begin again at 0
        climbed = tl.maximum(theta + (total - t) / tl.where(mass > 0, mass, 1.0), 0.0)
        proposed = tl.where(mass > 0, climbed, 0.0)
    return proposed, mass
