"""A layer prepared for a toolkit's rounding: candidate rows, and what the choice among them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magr_gptq.config import Plan
from magr_gptq.reduction.factorization import Share
from magr_gptq.reduction.hessian import normalise
from magr_gptq.reduction.solver import reduce_each


@dataclass(frozen=True)
class Layer:
    """What stays of a layer while a toolkit rounds its candidate rows.

    target: the weight that the rounded one is to come near, [out, in] float32.
    hessian, unit: H over a power of two, [in, in] float32, and that power.
    numbers: which of the plan's candidates it was prepared for, consecutive ones.
    shrinkage: ‖target − W'‖²_H of every candidate's weight W', in the unit, [candidates, out].
    largest: max |w'| of every row, [candidates, out].
    unimproved: how many rows a solver left as they were: it found nothing better, or nothing finite.
    """

    plan: Plan
    target: Tensor
    hessian: Tensor
    unit: float
    numbers: Sequence[int]
    shrinkage: Tensor
    largest: Tensor
    unimproved: int

    @property
    def factors(self) -> Tensor:
        """Factors on the step that the groups of a candidate row choose from, [candidates·out, factors]."""
        factors = self.plan.factors[list(self.numbers)]
        return factors.to(self.target).repeat_interleave(len(self.target), 0)

    def cut_to(self, columns: int) -> tuple[Tensor, Tensor]:
        """Target and Hessian of the first columns: a toolkit may have padded the layer, and cut it back."""
        return self.target[:, :columns], self.hessian[:columns, :columns]

    def coupling(self, hessian: Tensor) -> Tensor:
        """The Hessian by which a toolkit is to spread rounding errors: its own, or without couplings."""
        return hessian.diagonal().diag() if self.plan.nearest else hessian

    def to(self, device: torch.device | str) -> Layer:
        """The same elsewhere."""
        target, hessian, shrinkage, largest = (
            tensor.to(device) for tensor in (self.target, self.hessian, self.shrinkage, self.largest)
        )
        return replace(self, target=target, hessian=hessian, shrinkage=shrinkage, largest=largest)


@torch.no_grad()
def prepare(
    weight: Tensor,
    hessian: Tensor,
    plan: Plan,
    share: Share | None = None,
    numbers: Sequence[int] | None = None,
) -> tuple[Layer, list[Tensor]]:
    """Reduce a layer's weight for candidates of the plan.

    Args:
        weight, hessian: as for `reduce`; neither is changed or kept, as toolkits overwrite theirs.
        share: see `reduce_each`. numbers: of consecutive candidates; None is all.

    Returns:
        The layer, and what to round in its weight's place, of each candidate, [out, in] float32. The layer
        does not hold those rows, so that their memory is free once the toolkit has overwritten them.

    Raises:
        ValueError: as `reduce`.
    """
    numbers = range(len(plan.candidates)) if numbers is None else numbers
    penalties = [plan.candidates[number].penalty for number in numbers]
    reductions = reduce_each(weight, hessian, plan, penalties, share)
    target = weight.detach().to(hessian.device, torch.float32)
    scaled, unit = normalise(hessian)
    layer = Layer(
        plan=plan,
        target=target,
        hessian=scaled,
        unit=float(unit),
        numbers=numbers,
        shrinkage=torch.stack([(found.squared_change / unit).float() for found in reductions]),
        largest=torch.stack([found.largest_after for found in reductions]),
        unimproved=max(found.unimproved for found in reductions),
    )
    return layer, [found.weight for found in reductions]
