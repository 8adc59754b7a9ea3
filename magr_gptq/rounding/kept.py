"""Every row's best candidate, of those that a toolkit has rounded so far."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.choice import criterion
from magr_gptq.rounding.layer import Layer
from magr_gptq.rounding.rounded import Rounded


@dataclass(frozen=True)
class Kept:
    """What rows keep.

    rounded: [out, in] and its grids. picked: the number of every row's candidate, [out].
    criterion: by which it was chosen, [out]. largest: max |w'| of every row before it was rounded, [out].
    plain_error: ‖Ŵ − Q‖²_H of plain GPTQ's rows together; None where it is not among the candidates so far.
    unimproved: how many rows a solver left as they were.
    """

    rounded: Rounded
    picked: Tensor
    criterion: Tensor
    largest: Tensor
    plain_error: float | None
    unimproved: int

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Layer, rounded: Rounded) -> Kept:
        """The best of a layer's candidates.

        Args:
            rounded: what became of the layer's candidate rows, in their order.
        """
        target, hessian = layer.cut_to(rounded.weight.shape[1])
        errors = _errors(layer, rounded.weight.view(-1, *target.shape), target, hessian)
        least, best = criterion(errors, layer.shrinkage).min(0)
        every = torch.arange(len(target), device=best.device)
        return cls(
            rounded=rounded.rows(best * len(target) + every) if len(errors) > 1 else rounded,
            picked=best + layer.numbers[0],
            criterion=least,
            largest=layer.largest[best, every],
            plain_error=float(errors[0].sum()) if layer.plan.had_plain and layer.numbers[0] == 0 else None,
            unimproved=layer.unimproved,
        )

    @torch.no_grad()
    def or_better(self, other: Kept) -> Kept:
        """These rows, and those of later candidates where they are strictly better."""
        better = other.criterion < self.criterion
        picked, least, largest = (
            torch.where(better, theirs, mine)
            for mine, theirs in (
                (self.picked, other.picked),
                (self.criterion, other.criterion),
                (self.largest, other.largest),
            )
        )
        rounded = self.rounded.where(better, other.rounded)
        return Kept(rounded, picked, least, largest, self.plain_error, max(self.unimproved, other.unimproved))


@dataclass(frozen=True)
class Held:
    """Kept rows that wait for a toolkit to round the next candidate: their codes, a byte each.

    codes: code − lowest, uint8 [out, in]. kept: the rest, without a weight.
    """

    codes: Tensor
    kept: Kept

    @classmethod
    @torch.no_grad()
    def of(cls, kept: Kept) -> Held:
        """The same rows in a quarter of the memory."""
        rounded = kept.rounded
        # a byte can't be NaN, so that its row's scale tells
        broken = ~rounded.weight.isfinite().all(1, keepdim=True)
        scale = rounded.scale.masked_fill(broken, torch.nan)
        codes = (rounded.weight / rounded.spread(rounded.scale)).add_(rounded.spread(rounded.zero))
        # where a scale is 0, any code will do
        codes = codes.round_().sub_(rounded.lowest).to(torch.uint8)
        rest = replace(rounded, weight=rounded.weight.new_empty(0), scale=scale)
        return cls(codes, replace(kept, rounded=rest))

    @torch.no_grad()
    def released(self) -> Kept:
        """As they were kept."""
        rounded = self.kept.rounded
        weight = self.codes.to(rounded.scale).add_(rounded.lowest).sub_(rounded.spread(rounded.zero))
        return replace(self.kept, rounded=replace(rounded, weight=weight.mul_(rounded.spread(rounded.scale))))


def _errors(layer: Layer, quantized: Tensor, target: Tensor, hessian: Tensor) -> Tensor:
    """‖Ŵ − Q‖²_H of every candidate's rows, [candidates, out]."""
    if not layer.plan.has_choice:
        return layer.shrinkage
    # one by one: together they would need memory for as many differences
    return torch.stack([squared_norm(target - candidate, hessian) for candidate in quantized])
