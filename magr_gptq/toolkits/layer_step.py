"""What every adapter does with a layer: MagR's rows through the toolkit's rounding, or a step aside.

One layer's numbers or memory must not end a run of hours. What they raise leads down this road: fewer rows
at a time (in `reduce`), one candidate at a time, the CPU, and at last the toolkit alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from magr_gptq.config import Plan
from magr_gptq.reduction.factorization import Share
from magr_gptq.reduction.shrinkage import even_, shrink_, shrinkage, shrinkage_of_halves
from magr_gptq.reduction.target import Half, Target, target_of
from magr_gptq.rounding.layer import Layer, apart, prepare
from magr_gptq.rounding.order import back_in_place, importance_order
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import Settled, settle
from magr_gptq.toolkits.memory import fits, goes_one_by_one

# has the toolkit round rows, under their factors and by a Hessian, all of which it may overwrite
RoundRows = Callable[[Tensor, Tensor, Tensor], Rounded]
# the same of several layers, each with its number
RoundAll = Callable[[Sequence[tuple[int, Tensor, Tensor, Tensor]]], list[Rounded]]

# what numbers and memory raise; LinAlgError and OutOfMemoryError are RuntimeErrors, and a device that lacks
# float64 raises TypeError
LAYER_ERRORS = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)

UNREACHED = "no calibration token reached the layer, or all of its inputs were zero"
ZERO = "all of its weights are zero"


@dataclass(frozen=True)
class Given:
    """A layer as a toolkit has it.

    weight: [out, in], which stays. hessian: [in, in], to be overwritten.
    tokens: how many the Hessian is made of; None where they were not counted.
    in_order: whether the toolkit rounds columns as they come, in groups of consecutive ones.
    share: see `reduce_each`.
    halves: of the calibration documents, what both chains add up to; None where a toolkit could not give it,
        so that the layer's own output is the target. The list is emptied once the target is found.
    """

    weight: Tensor
    hessian: Tensor
    plan: Plan
    tokens: int | None = None
    in_order: bool = False
    share: Share | None = None
    halves: list[Half] | None = None


@dataclass(frozen=True)
class Done:
    """What MagR made of a layer.

    subnormal: the share of scales that the checkpoint's dtype holds with fewer digits, or not at all.
    tokens: how many the Hessian is made of. shrinkage: the share by which its pairs were shrunk.
    correction: the share of the correction towards the unquantized model's output that was taken; None where
        the layer's own output was the target. own_output: whether it was though the plan aims at the model's.
    """

    settled: Settled
    subnormal: float
    tokens: int | None = None
    shrinkage: float | None = None
    correction: float | None = None
    own_output: bool = False


@dataclass(frozen=True)
class Aside:
    """MagR leaves the layer to the toolkit.

    reason: why, in a line. hessian: to round by, as the toolkit's may be overwritten.
    outcome: the reason in a word.
    """

    reason: str
    hessian: Tensor
    outcome: str = "skipped"


@dataclass(frozen=True)
class _Ready:
    """A layer with its Hessian regularised; order: in which its columns are handed over."""

    given: Given
    order: Tensor | None
    shrinkage: float | None
    correction: float | None

    def handed_over(self, layer: Layer, rows: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hessian, order = layer.coupling(self.given.hessian), self.order
        if order is not None:
            rows, hessian = rows[:, order], hessian[order][:, order]
        return rows, factors, hessian

    def taken_back(self, rounded: Rounded) -> Rounded:
        return rounded if self.order is None else back_in_place(rounded, self.order)

    def done(self, settled: Settled) -> Done:
        least = torch.finfo(self.given.plan.stored).tiny
        subnormal = (settled.rounded.scale.abs() < least).float().mean()
        return Done(
            settled,
            float(subnormal),
            self.given.tokens,
            self.shrinkage,
            self.correction,
            own_output=self.given.plan.aims_at_model and self.correction is None,
        )


def quantize_layer(given: Given, round_rows: RoundRows) -> Done | Aside:
    """What becomes of a layer that the toolkit rounds by `round_rows`."""
    ready = _ready(given)
    return ready if isinstance(ready, Aside) else _quantized(ready, round_rows)


def quantize_together(layers: Sequence[Given], round_all: RoundAll) -> list[Done | Aside]:
    """What becomes of several layers in one pass of the toolkit; where that fails, each by itself."""
    ready = [_ready(given) for given in layers]
    busy = {number: one for number, one in enumerate(ready) if isinstance(one, _Ready)}
    together = len(busy) > 1 and _fits([one.given for one in busy.values()])
    found = _together(busy, round_all) if together else {}
    for number, one in busy.items():
        if number not in found:
            found[number] = _quantized(one, partial(_round_one, round_all, number))
    return [one if isinstance(one, Aside) else found[number] for number, one in enumerate(ready)]


def _ready(given: Given) -> _Ready | Aside:
    """Aim, regularise the Hessian, choose the order of its columns; aside where there is nothing to do."""
    try:
        if not given.hessian.diagonal().any():
            return Aside(UNREACHED, given.hessian, "unreached")
        if not given.weight.any():
            return Aside(ZERO, given.hessian, "unchanged")
        return _regularised(given)
    except LAYER_ERRORS as error:
        return Aside(first_line(error), given.hessian)


def _regularised(given: Given) -> _Ready:
    hessian, plan = given.hessian, given.plan
    share = order = correction = None
    if plan.shrinks and given.tokens:
        rho = _shrinkage(given, given.tokens)
        even_(shrink_(hessian, rho), rho, given.tokens)
        share = float(rho)
    if plan.aims_at_model and given.halves:
        target = _target(given.weight, given.halves)
        # frames above name them, too: their memory is for the toolkit, which rounds next
        given.halves.clear()
        given, correction = replace(given, weight=target.weight, halves=None), target.strength
    if given.in_order and plan.reorders:
        order = importance_order(hessian.diagonal(), plan.group_size)
        given = replace(given, plan=replace(plan, order=order))
    return _Ready(given, order, share, correction)


def _shrinkage(given: Given, tokens: int) -> Tensor:
    """What the halves tell knows how alike a document's tokens are; else the number of tokens must do."""
    if given.halves and len(given.halves) == 2:
        first, second = (half.gram for half in given.halves)
        return shrinkage_of_halves(first, second).to(given.hessian.device)
    return shrinkage(given.hessian, tokens)


def _target(weight: Tensor, halves: Sequence[Half]) -> Target:
    """What the layer aims at; found on the CPU where a device has no memory for it."""
    try:
        return target_of(weight, halves)
    except LAYER_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    found = target_of(weight.cpu(), [half.to(torch.device("cpu")) for half in halves])
    return replace(found, weight=found.weight.to(weight.device))


def _quantized(ready: _Ready, round_rows: RoundRows) -> Done | Aside:
    given, layer, failed = ready.given, None, None
    if _fits([given]):
        try:
            layer, rows = prepare(given.weight, given.hessian, given.plan, given.share)
            return ready.done(settle(layer, _all_rounded(ready, layer, rows, round_rows)))
        except LAYER_ERRORS as error:
            # its traceback keeps what the toolkit has allocated
            failed = error.with_traceback(None)
    if failed is None or is_out_of_memory(failed):
        try:
            return ready.done(_apart(ready, layer, round_rows))
        except LAYER_ERRORS as error:
            failed = error.with_traceback(None)
    return Aside(first_line(failed), given.hessian if layer is None else layer.hessian * layer.unit)


def _all_rounded(ready: _Ready, layer: Layer, rows: list[Tensor], round_rows: RoundRows) -> Rounded:
    """The toolkit alone holds what it rounds, and can free it."""
    out, columns = layer.target.shape
    if len(rows) == 1 or not goes_one_by_one(out, columns):
        together = torch.cat(rows)
        rows.clear()
        return ready.taken_back(round_rows(*ready.handed_over(layer, together, layer.factors)))
    parts = []
    for factors in torch.split(layer.factors, out):
        rounded = round_rows(*ready.handed_over(layer, rows.pop(0), factors))
        parts.append(ready.taken_back(rounded))
        # which the toolkit may have overwritten
        ready.given.hessian.copy_(layer.hessian * layer.unit)
    return Rounded.joined(parts)


def _fits(layers: Sequence[Given]) -> bool:
    """Whether there is memory for all of their candidates; a single one has no narrower road."""
    most = max(len(given.plan.candidates) for given in layers)
    shapes = [(given.weight.shape[0], given.weight.shape[1]) for given in layers]
    return most == 1 or fits(shapes, most, layers[0].hessian.device)


def _apart(ready: _Ready, layer: Layer | None, round_rows: RoundRows) -> Settled:
    """The same in the memory of one candidate, which is that of plain GPTQ; rows choose on the CPU."""
    given, device = ready.given, ready.given.hessian.device
    warnings.warn(
        f"magr: {device} has no memory for all candidates of a layer: rounded one by one, chosen on the CPU",
        stacklevel=2,
    )
    layer = layer.to("cpu") if layer else prepare(given.weight.cpu(), given.hessian.cpu(), given.plan)[0]
    parts = []
    for rows, factors, hessian in apart(layer, device):
        if (order := ready.order) is not None:
            rows, hessian = rows[:, order], hessian[order][:, order]
        parts.append(ready.taken_back(round_rows(rows, factors, hessian)).to("cpu"))
    settled = settle(layer, Rounded.joined(parts))
    return replace(settled, rounded=settled.rounded.to(device))


def _together(layers: Mapping[int, _Ready], round_all: RoundAll) -> dict[int, Done | Aside]:
    """All in one pass; none where that fails, with their Hessians as they were."""
    prepared: dict[int, Layer] = {}
    try:
        passes = []
        for number, one in layers.items():
            prepared[number], rows = prepare(one.given.weight, one.given.hessian, one.given.plan)
            layer = prepared[number]
            passes.append((number, *one.handed_over(layer, torch.cat(rows), layer.factors)))
        found = zip(layers.items(), round_all(passes), strict=True)
        return {n: one.done(settle(prepared[n], one.taken_back(rounded))) for (n, one), rounded in found}
    except LAYER_ERRORS:
        # which layer it was, and why, shows when each goes by itself
        for number, layer in prepared.items():
            layers[number].given.hessian.copy_(layer.hessian * layer.unit)
        return {}


def _round_one(round_all: RoundAll, number: int, rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
    (rounded,) = round_all([(number, rows, factors, hessian)])
    return rounded


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no room."""
    # torch's allocator for the CPU raises a plain RuntimeError
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def descending_order(hessian: Tensor, dead: float) -> Tensor:
    """The order of columns by `desc_act`, [in]: largest diagonal first; an unreached one counts as `dead`."""
    diagonal = hessian.diagonal()
    return torch.argsort(torch.where(diagonal == 0, dead, diagonal), descending=True)
