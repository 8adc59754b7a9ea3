"""A layer prepared for a toolkit's rounding: candidate rows, and what the choice among them needs."""

from __future__ import annotations

from collections.abc import Iterator
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
    shrinkage: ‖target − W'‖²_H of every candidate's weight W', in the unit, [candidates, out].
    largest: max |w'| of every row, [candidates, out].
    unimproved: how many rows a solver left as they were: it found nothing better, or nothing finite.
    """

    plan: Plan
    target: Tensor
    hessian: Tensor
    unit: float
    shrinkage: Tensor
    largest: Tensor
    unimproved: int

    @property
    def factors(self) -> Tensor:
        """Factors on the step that the groups of a candidate row choose from, [candidates·out, factors]."""
        return self.plan.factors.to(self.target).repeat_interleave(len(self.target), 0)

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
    weight: Tensor, hessian: Tensor, plan: Plan, share: Share | None = None
) -> tuple[Layer, list[Tensor]]:
    """Reduce a layer's weight for every candidate of the plan.

    Args:
        weight, hessian: as for `reduce`; neither is changed or kept, as toolkits overwrite theirs.
        share: see `reduce_each`.

    Returns:
        The layer, and what to round in its weight's place, of every candidate, [out, in] float32. The layer
        does not hold those rows, so that their memory is free once the toolkit has overwritten them.

    Raises:
        ValueError: as `reduce`.
    """
    reductions = reduce_each(
        weight, hessian, plan, [candidate.penalty for candidate in plan.candidates], share
    )
    target = weight.detach().to(hessian.device, torch.float32)
    scaled, unit = normalise(hessian)
    layer = Layer(
        plan=plan,
        target=target,
        hessian=scaled,
        unit=float(unit),
        shrinkage=torch.stack([(found.squared_change / unit).float() for found in reductions]),
        largest=torch.stack([found.largest_after for found in reductions]),
        unimproved=max(found.unimproved for found in reductions),
    )
    return layer, [found.weight for found in reductions]


def apart(layer: Layer, device: torch.device | str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One candidate after another, where a device has no memory for all of them; the layer may lie elsewhere.

    Each is reduced anew, as a toolkit has overwritten what it rounds.

    Yields:
        Rows and factors of a candidate, and the Hessian to round them by, on the device.
    """
    for candidate, factors in zip(layer.plan.candidates, layer.plan.factors.to(device), strict=True):
        alone = layer.plan.only(candidate)
        hessian = layer.hessian.to(device) * layer.unit
        (found,) = reduce_each(layer.target.to(device), hessian, alone, [candidate.penalty])
        yield found.weight, factors.expand(len(found.weight), -1), layer.coupling(hessian)
