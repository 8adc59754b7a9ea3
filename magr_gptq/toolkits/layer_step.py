"""What every adapter does with a layer: MagR's rows through the toolkit's rounding, or a step aside.

One layer's numbers or memory must not end a run of hours. What they raise leads down this road: fewer rows
at a time (in `reduce`), one candidate at a time, the CPU (both in `roads`), and at last the toolkit alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from magr_gptq.config import Plan
from magr_gptq.reduction.factorization import Share
from magr_gptq.reduction.shrinkage import even_, shrink_, shrinkage
from magr_gptq.reduction.target import Half, Target, shrinkage_by_documents, target_of
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import Layer, prepare
from magr_gptq.rounding.order import importance_order
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import Settled, settle
from magr_gptq.toolkits.memory import fits, is_out_of_memory
from magr_gptq.toolkits.roads import Passage, RoundRows, settled

# rounds rows of several layers, each with its number
RoundAll = Callable[[Sequence[tuple[int, Tensor, Tensor, Tensor]]], list[Rounded]]

# what numbers and memory raise; LinAlgError and OutOfMemoryError are RuntimeErrors, and a device that lacks
# float64 raises TypeError
LAYER_ERRORS = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)

T = TypeVar("T")

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
    """A layer with its target and its Hessian regularised."""

    passage: Passage
    tokens: int | None
    shrinkage: float | None
    correction: float | None

    def done(self, settled: Settled) -> Done:
        plan = self.passage.plan
        subnormal = (settled.rounded.scale.abs() < torch.finfo(plan.stored).tiny).float().mean()
        return Done(
            settled,
            float(subnormal),
            self.tokens,
            self.shrinkage,
            self.correction,
            own_output=plan.aims_at_model and self.correction is None,
        )


def quantize_layer(given: Given, round_rows: RoundRows) -> Done | Aside:
    """What becomes of a layer that the toolkit rounds by `round_rows`."""
    ready = _ready(given)
    return ready if isinstance(ready, Aside) else _quantized(ready, round_rows)


def quantize_together(layers: Sequence[Given], round_all: RoundAll) -> list[Done | Aside]:
    """What becomes of several layers in one pass of the toolkit; where that fails, each by itself."""
    ready = [_ready(given) for given in layers]
    busy = {number: one for number, one in enumerate(ready) if isinstance(one, _Ready)}
    found = _together(busy, round_all) if _fit(list(busy.values())) else {}
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
    weight, hessian, plan = given.weight, given.hessian, given.plan
    rho = order = correction = None
    # what the halves tell knows how alike a document's tokens are; else the number of tokens must do
    halves = given.halves or []
    known = _with_memory(shrinkage_by_documents, halves) if len(halves) == 2 else None
    if plan.shrinks and given.tokens:
        rho = shrinkage(hessian, given.tokens) if known is None else known.to(hessian.device)
        even_(shrink_(hessian, rho), rho, given.tokens)
    if plan.aims_at_model and halves:
        target = _target(weight, halves, known)
        # frames above name them, too: their memory is for the toolkit, which rounds next
        halves.clear()
        weight, correction = target.weight, target.strength
    if given.in_order and plan.reorders:
        order = importance_order(hessian.diagonal(), plan.group_size)
        plan = replace(plan, order=order)
    passage = Passage(weight, hessian, plan, order, given.share)
    return _Ready(passage, given.tokens, None if rho is None else float(rho), correction)


def _target(weight: Tensor, halves: Sequence[Half], rho: Tensor | None) -> Target:
    """What the layer aims at, on the weight's device."""

    def compute(halves: Sequence[Half]) -> Target:
        device = halves[0].gram.device
        return target_of(weight.to(device), halves, None if rho is None else rho.to(device))

    found = _with_memory(compute, halves)
    return replace(found, weight=found.weight.to(weight.device))


def _with_memory(compute: Callable[[Sequence[Half]], T], halves: Sequence[Half]) -> T:
    """What is made of the halves; on the CPU where their device has no memory for it."""
    try:
        return compute(halves)
    except LAYER_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    return compute([half.to(torch.device("cpu")) for half in halves])


def _quantized(ready: _Ready, round_rows: RoundRows) -> Done | Aside:
    try:
        return ready.done(settled(ready.passage, round_rows))
    except LAYER_ERRORS as error:
        return Aside(first_line(error), ready.passage.hessian)


def _fit(layers: Sequence[_Ready]) -> bool:
    """Whether there are several, with memory for all of their candidates."""
    passages = [one.passage for one in layers]
    if len(passages) < 2:
        return False
    most = max(len(passage.plan.candidates) for passage in passages)
    shapes = [(passage.weight.shape[0], passage.weight.shape[1]) for passage in passages]
    return most == 1 or fits(shapes, most, passages[0].hessian.device)


def _together(layers: Mapping[int, _Ready], round_all: RoundAll) -> dict[int, Done | Aside]:
    """All in one pass; none where that fails, with their Hessians as they were."""
    prepared: dict[int, Layer] = {}
    try:
        passes = []
        for number, one in layers.items():
            passage = one.passage
            prepared[number], rows = prepare(passage.weight, passage.hessian, passage.plan)
            passes.append((number, *passage.handed_over(prepared[number], rows)))
        found = zip(layers.items(), round_all(passes), strict=True)
        return {n: _settled(one, prepared[n], rounded) for (n, one), rounded in found}
    except LAYER_ERRORS:
        # which layer it was, and why, shows when each goes by itself
        for number, layer in prepared.items():
            layers[number].passage.restore(layer)
        return {}


def _settled(ready: _Ready, layer: Layer, rounded: Rounded) -> Done:
    return ready.done(settle(layer, Kept.of(layer, ready.passage.taken_back(rounded))))


def _round_one(round_all: RoundAll, number: int, rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
    (rounded,) = round_all([(number, rows, factors, hessian)])
    return rounded


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def descending_order(hessian: Tensor, dead: float) -> Tensor:
    """The order of columns by `desc_act`, [in]: largest diagonal first; an unreached one counts as `dead`."""
    diagonal = hessian.diagonal()
    return torch.argsort(torch.where(diagonal == 0, dead, diagonal), descending=True)
