"""A layer of the kit: a made-up weight and Hessian, and rows rounded in place of a toolkit's rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eval.studies.solver.layers import make, of_shape
from magr_gptq import MagRConfig
from magr_gptq.config import Plan
from magr_gptq.reduction.factorization import Factorization
from magr_gptq.reduction.hessian import ScaledHessian
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import Settled, settle

BITS, GROUP_SIZE = 3, 128
LOWEST = -(2 ** (BITS - 1))


@dataclass(frozen=True)
class Made:
    """W [rows, columns], H [columns, columns], and the default's plan."""

    weight: Tensor
    hessian: Tensor
    plan: Plan

    @classmethod
    def of(cls, rows: int, columns: int, device: str, group_size: int = GROUP_SIZE) -> Made:
        """A power-law spectrum of condition 1e6 with a few directions far above it, seed 0."""
        weight, hessian = make(of_shape(rows, columns), seed=0, device=device)
        return cls(weight, hessian, MagRConfig().resolve(BITS, group_size))

    def factorization(self) -> Factorization:
        """What layers with one input share."""
        return Factorization.of(ScaledHessian(self.hessian))

    def default_work(self) -> Settled:
        """All that the default does around a toolkit's rounding, which is to nearest here."""
        layer, rows = prepare(self.weight, self.hessian, self.plan)
        return settle(layer, Kept.of(layer, nearest(rows, self.plan.group_size)))


def nearest(candidates: list[Tensor], group_size: int) -> Rounded:
    """Every candidate's rows rounded to symmetric grids over the largest magnitude of each group."""
    return Rounded.joined([_nearest(rows, group_size) for rows in candidates])


def _nearest(rows: Tensor, group_size: int) -> Rounded:
    columns = rows.shape[1]
    size = columns if group_size == -1 else min(group_size, columns)
    groups = rows.view(len(rows), -1, size)
    scale = groups.abs().amax(2) / -LOWEST
    codes = (groups / scale[..., None]).round_().clamp_(LOWEST, -LOWEST - 1)
    weight = codes.mul_(scale[..., None]).flatten(1)
    group_of = torch.arange(columns, device=rows.device) // size
    return Rounded(weight, scale, torch.zeros_like(scale), group_of, lowest=LOWEST)
