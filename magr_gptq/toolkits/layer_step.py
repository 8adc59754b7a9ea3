"""What every adapter does with a layer: MagR's rows through the toolkit's rounding, or a step aside.

One layer's numbers or memory must not end a run of hours. What they raise leads down this road: fewer rows
at a time (in `reduce`), one candidate at a time, the CPU, and at last the toolkit alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from magr_gptq.config import Plan
from magr_gptq.reduction.factorization import Share
from magr_gptq.rounding.layer import Layer, apart, prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import Settled, settle

# has the toolkit round rows, under their factors and by a Hessian, all of which it may overwrite
RoundRows = Callable[[Tensor, Tensor, Tensor], Rounded]
# the same of several layers, each with its number
RoundAll = Callable[[Sequence[tuple[int, Tensor, Tensor, Tensor]]], list[Rounded]]

# what numbers and memory raise; LinAlgError and OutOfMemoryError are RuntimeErrors, and a device that lacks
# float64 raises TypeError
LAYER_ERRORS = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Aside:
    """MagR leaves the layer to the toolkit.

    reason: why, in a line.
    hessian: for the toolkit to round by, as it may have overwritten its own.
    """

    reason: str
    hessian: Tensor


def quantize_rows(
    weight: Tensor, hessian: Tensor, plan: Plan, round_rows: RoundRows, share: Share | None = None
) -> Settled | Aside:
    """What the layer ends with; weight [out, in] stays, `hessian` [in, in] is the toolkit's to overwrite."""
    layer = None
    try:
        layer, *rows = prepare(weight, hessian, plan, share)
        # the toolkit alone holds the rows, and can free them
        return settle(layer, round_rows(rows.pop(), layer.factors, layer.coupling(hessian)))
    except LAYER_ERRORS as error:
        # its traceback keeps what the toolkit has allocated
        failed = error.with_traceback(None)
    if is_out_of_memory(failed):
        try:
            cpu = layer.to("cpu") if layer else prepare(weight.cpu(), hessian.cpu(), plan)[0]
            return settle_apart(cpu, hessian.device, round_rows)
        except LAYER_ERRORS as error:
            failed = error.with_traceback(None)
    return Aside(first_line(failed), hessian if layer is None else layer.hessian * layer.unit)


@dataclass(frozen=True)
class Given:
    """A layer as a toolkit has it: weight [out, in], which stays; Hessian [in, in], to be overwritten."""

    weight: Tensor
    hessian: Tensor
    plan: Plan


def quantize_together(given: Sequence[Given], round_all: RoundAll) -> list[Settled | Aside]:
    """What several layers end with, in one pass of the toolkit; where that fails, each by itself."""
    layers: list[Layer] = []
    if len(given) > 1:
        try:
            passes = []
            for number, one in enumerate(given):
                layer, rows = prepare(one.weight, one.hessian, one.plan)
                layers.append(layer)
                passes.append((number, rows, layer.factors, layer.coupling(one.hessian)))
            return [settle(layer, found) for layer, found in zip(layers, round_all(passes), strict=True)]
        except LAYER_ERRORS:
            # which layer it was, and why, shows below
            passes = []
    hessians = [layer.hessian * layer.unit for layer in layers] + [
        one.hessian for one in given[len(layers) :]
    ]
    return [
        quantize_rows(one.weight, hessian, one.plan, partial(_round_one, round_all, number))
        for number, (one, hessian) in enumerate(zip(given, hessians, strict=True))
    ]


def _round_one(round_all: RoundAll, number: int, rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
    (rounded,) = round_all([(number, rows, factors, hessian)])
    return rounded


def settle_apart(layer: Layer, device: torch.device, round_rows: RoundRows) -> Settled:
    """The same in the memory of one candidate, which is that of plain GPTQ; the layer is on the CPU."""
    warnings.warn(
        f"magr: {device} has no memory for all candidates of a layer: rounded one by one, chosen on the CPU",
        stacklevel=2,
    )
    rounded = [round_rows(*part).to("cpu") for part in apart(layer, device)]
    settled = settle(layer, Rounded.joined(rounded))
    return replace(settled, rounded=settled.rounded.to(device))


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
