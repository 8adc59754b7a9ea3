"""GPTQ's column loop on a few rows, on grids of several widths at once: what a toolkit would make of them.

A sample of rows stands for a layer. They are rounded one column at a time, each column's error spread over
those after it (E. Frantar et al., "GPTQ", ICLR 2023), in the order in which the columns stand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.step import least_error_factor

# columns whose errors are gathered before the later ones hear of them
BLOCK = 128


def round_columns(rows: Tensor, factor: Tensor, bits: Tensor, factors: Tensor, group_size: int) -> Rounded:
    """Every row on symmetric grids of its own bits, one a group.

    Args:
        rows: [rows, in] float32. factor: U, upper triangular, with UᵀU = (H + dI)⁻¹, [in, in].
        bits: of every row, [rows, 1]. factors: on the step, each group takes the best, [rows, factors].
        group_size: consecutive columns that share a scale; −1 is the whole row, the last may be short.
    """
    columns = rows.shape[1]
    size = columns if group_size == -1 else group_size
    highest = torch.exp2(bits) - 1
    zero = (highest + 1) / 2
    low, high = -zero[:, 0], (highest - zero)[:, 0]
    # turned round, as a column is what is rounded at a time
    work = rows.mT.clone(memory_format=torch.contiguous_format)
    values, steps = torch.empty_like(work), []
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        # a copy, as toolkits set a group's grid by what it was before the block
        block, errors = work[start:end].clone(), torch.empty_like(work[start:end])
        for i in range(end - start):
            if (start + i) % size == 0:
                steps.append(_step(work[start + i : start + i + size].mT, highest, zero, factors))
                step = steps[-1][:, 0]
            code = (block[i] / step).round_()
            torch.minimum(torch.maximum(code, low, out=code), high, out=code)
            value = torch.mul(code, step, out=values[start + i])
            torch.sub(block[i], value, out=errors[i]).div_(factor[start + i, start + i])
            block[i + 1 :].addr_(factor[start + i, start + i + 1 : end], errors[i], alpha=-1)
        work[end:].addmm_(factor[start:end, end:].mT, errors, alpha=-1)
    scale = torch.cat(steps, 1)
    group_of = torch.arange(columns, device=rows.device) // size
    return Rounded(values.mT.contiguous(), scale, zero.expand_as(scale), group_of)


def _step(group: Tensor, highest: Tensor, zero: Tensor, factors: Tensor) -> Tensor:
    """The step of least rounding error for a group of columns, [rows, 1]."""
    largest = group.abs().amax(1, keepdim=True)
    step = 2 * torch.where(largest > 0, largest, 1.0) / highest
    lowest = torch.zeros_like(highest)
    return step * least_error_factor(group, step, zero, factors, lowest=lowest, highest=highest)
