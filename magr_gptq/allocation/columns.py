"""GPTQ's column loop on a few rows, on grids of several widths at once: what a toolkit would make of them.

A sample of rows stands for a layer. They are rounded one column at a time, each column's error spread over
those after it (E. Frantar et al., "GPTQ", ICLR 2023), in the order in which the columns stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.step import least_error_factor

# columns whose errors are gathered before the later ones hear of them
BLOCK = 128


@dataclass(frozen=True)
class Unrounded:
    """Rows that share their groups, to be rounded on symmetric grids of each row's own bits, one a group.

    weight: [rows, in] float32. bits: of every row, [rows, 1]. factors: on the step, each group takes the
    best, [rows, factors]. group_size: consecutive columns that share a scale; −1 is the whole row, the last
    may be short.
    """

    weight: Tensor
    bits: Tensor
    factors: Tensor
    group_size: int

    @property
    def columns_a_group(self) -> int:
        """Of all groups but the last."""
        return self.weight.shape[1] if self.group_size == -1 else self.group_size

    @property
    def highest(self) -> Tensor:
        """Code, of every row, [rows, 1]."""
        return torch.exp2(self.bits) - 1

    @property
    def zero(self) -> Tensor:
        """The code of 0, of every row, [rows, 1]."""
        return torch.exp2(self.bits - 1)

    def rounded(self, weight: Tensor, scale: Tensor) -> Rounded:
        """These rows, once they are: [rows, in], [rows, groups]."""
        group_of = torch.arange(weight.shape[1], device=weight.device) // self.columns_a_group
        return Rounded(weight, scale, self.zero.expand_as(scale), group_of)

    def step(self, group: Tensor) -> Tensor:
        """The step of least rounding error for a group of columns of these rows, [rows, 1]."""
        largest = group.abs().amax(1, keepdim=True)
        step = 2 * torch.where(largest > 0, largest, 1.0) / self.highest
        ends = {"lowest": torch.zeros_like(self.highest), "highest": self.highest}
        return step * least_error_factor(group, step, self.zero, self.factors, **ends)


def round_columns(parts: Sequence[Unrounded], factor: Tensor) -> list[Rounded]:
    """All rows of all parts, whose groups differ, in one pass over the columns.

    Args:
        factor: U, upper triangular, with UᵀU = (H + dI)⁻¹, [in, in].
    """
    counts = [len(part.weight) for part in parts]
    low = torch.cat([-part.zero for part in parts])[:, 0]
    high = torch.cat([part.highest - part.zero for part in parts])[:, 0]
    # turned round, as a column is what is rounded at a time
    work = torch.cat([part.weight for part in parts]).mT.clone(memory_format=torch.contiguous_format)
    values, step = torch.empty_like(work), torch.empty_like(low)
    scales: list[list[Tensor]] = [[] for _ in parts]
    by_part = list(zip(parts, torch.split(work, counts, 1), torch.split(step, counts), scales, strict=True))
    for start in range(0, len(work), BLOCK):
        end = min(start + BLOCK, len(work))
        # a copy, as toolkits set a group's grid by what it was before the block
        block, errors = work[start:end].clone(), torch.empty_like(work[start:end])
        here = factor[start:end, start:end]
        # taken apart at once: reaching for a column takes as long as what is done to it
        apart = [x.unbind() for x in (block, values[start:end], errors, here, here.diagonal())]
        for i, (column, value, error, row, pivot) in enumerate(zip(*apart, strict=True)):
            for part, group, own, found in by_part:
                if (start + i) % part.columns_a_group == 0:
                    found.append(part.step(group[start + i : start + i + part.columns_a_group].mT))
                    own.copy_(found[-1][:, 0])
            code = (column / step).round_()
            torch.minimum(torch.maximum(code, low, out=code), high, out=code)
            torch.mul(code, step, out=value)
            torch.sub(column, value, out=error).div_(pivot)
            block[i + 1 :].addr_(row[i + 1 :], error, alpha=-1)
        work[end:].addmm_(factor[start:end, end:].mT, errors, alpha=-1)
    return [
        part.rounded(weight.mT.contiguous(), torch.cat(found, 1))
        for part, weight, found in zip(parts, torch.split(values, counts, 1), scales, strict=True)
    ]
