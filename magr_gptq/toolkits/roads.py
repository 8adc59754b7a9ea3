"""The roads of a layer's candidates through a toolkit's rounding.

All go in one pass, as rows of one taller layer, where memory allows. Else they go one by one, and every row
keeps the better one each time: that takes the memory of plain GPTQ and up to two weights. Where a device
lacks even that, rows are kept and chosen on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from magr_gptq.config import Plan
from magr_gptq.reduction.factorization import Factorization, Share
from magr_gptq.rounding.kept import Held, Kept
from magr_gptq.rounding.layer import Layer, prepare
from magr_gptq.rounding.order import back_in_place
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import Settled, settle
from magr_gptq.toolkits.memory import fits, is_large_and_tall, is_out_of_memory

# has the toolkit round rows, under their factors and by a Hessian, all of which it may overwrite
RoundRows = Callable[[Tensor, Tensor, Tensor], Rounded]


@dataclass(frozen=True)
class Passage:
    """A layer on its way through a toolkit's rounding.

    weight: what it is to come near, [out, in]. hessian: regularised, [in, in].
    order: in which its columns are handed over; None is theirs. share: see `reduce_each`.
    """

    weight: Tensor
    hessian: Tensor
    plan: Plan
    order: Tensor | None = None
    share: Share | None = None

    def handed_over(self, layer: Layer, rows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, which are taken from the list, factors and Hessian, as the toolkit is to have them."""
        together, hessian = torch.cat(rows) if len(rows) > 1 else rows[0], layer.coupling(self.hessian)
        rows.clear()
        if self.order is not None:
            together, hessian = together[:, self.order], hessian[self.order][:, self.order]
        return together, layer.factors, hessian

    def taken_back(self, rounded: Rounded) -> Rounded:
        """Columns in their own order again."""
        return rounded if self.order is None else back_in_place(rounded, self.order)

    def restore(self, layer: Layer) -> None:
        """The Hessian as it was before a toolkit had it."""
        self.hessian.copy_(layer.hessian).mul_(layer.unit)


def settled(passage: Passage, round_rows: RoundRows) -> Settled:
    """What becomes of a layer on the widest road that memory allows."""
    roads = _roads(passage)
    while True:
        road = roads.pop(0)
        try:
            return road(round_rows)
        except (RuntimeError, MemoryError) as error:
            if not (roads and is_out_of_memory(error)):
                raise


def _roads(passage: Passage) -> list[Callable[[RoundRows], Settled]]:
    """From the widest to the narrowest."""
    (out, columns), device = passage.weight.shape, passage.hessian.device
    count = len(passage.plan.candidates)
    roads: list[Callable[[RoundRows], Settled]] = []
    if count == 1 or (not is_large_and_tall(out, columns) and fits([(out, columns)], count, device)):
        roads.append(partial(_together, passage))
    if count > 1:
        roads.append(partial(_one_by_one, passage, device))
    if device.type != "cpu":
        roads.append(partial(_one_by_one, passage, torch.device("cpu")))
    return roads


def _together(passage: Passage, round_rows: RoundRows) -> Settled:
    layer, rows = prepare(passage.weight, passage.hessian, passage.plan, passage.share)
    return settle(layer, Kept.of(layer, _rounded(passage, layer, rows, round_rows)))


def _one_by_one(passage: Passage, home: torch.device, round_rows: RoundRows) -> Settled:
    """Home: where rows are kept and chosen."""
    device, held = passage.hessian.device, None
    elsewhere = "" if home == device else f", chosen on the {home.type.upper()}"
    if elsewhere or not is_large_and_tall(*passage.weight.shape):
        message = f"{device} has no memory for all candidates of a layer: rounded one by one{elsewhere}"
        warnings.warn(f"magr: {message}", stacklevel=2)
    share = _once(passage.share) if home == device else None
    for number in range(len(passage.plan.candidates)):
        layer, rows = prepare(passage.weight, passage.hessian, passage.plan, share, [number])
        rounded = _rounded(passage, layer, rows, round_rows).to(home)
        layer = layer.to(home)
        kept = Kept.of(layer, rounded)
        held = Held.of(held.released().or_better(kept) if held else kept)
        del rounded, kept  # the next one takes their memory
    assert held is not None
    found = settle(layer, held.released())
    return replace(found, rounded=found.rounded.to(device))


def _rounded(passage: Passage, layer: Layer, rows: list[Tensor], round_rows: RoundRows) -> Rounded:
    try:
        return passage.taken_back(round_rows(*passage.handed_over(layer, rows)))
    finally:
        passage.restore(layer)


def _once(share: Share | None) -> Share:
    """One factorization for all candidates, and for the layers that share it."""
    found: list[Factorization] = []

    def remembered(compute: Callable[[], Factorization]) -> Factorization:
        if not found:
            found.append(share(compute) if share else compute())
        return found[0]

    return remembered
