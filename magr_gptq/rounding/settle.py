"""What a layer ends with: the rows that were kept, refined, their scales fitted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from magr_gptq.config import Candidate, Plan
from magr_gptq.reduction.groups import largest_magnitude
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import Layer
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.scales import balanced_gain, fitted_factors
from magr_gptq.rounding.sweep import coordinate_descent

# rows are swept in chunks of this many elements: 8 MiB for each of a sweep's buffers, so that they stay in a
# cache; on a GPU, whose kernel has a program for 16 rows, 64 MiB
CHUNK_ELEMENTS = 2**21
DEVICE_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Settled:
    """What a layer ends with.

    rounded: [out, in] and its grids.
    picked: the candidate that each row kept, [out].
    beta: mean over rows of the factor on the step; None where groups chose theirs.
    largest_before, largest_after: mean over rows of max |w|, before rounding.
    squared_error: tr((Ŵ − Q)H(Ŵ − Q)ᵀ). loss: the same over tr(ŴHŴᵀ). plain_loss: loss of plain
        GPTQ, where it was a candidate.
    unimproved: how many rows the solver left as they were: it found nothing better, or nothing finite.
    """

    rounded: Rounded
    picked: Tensor
    beta: float | None
    largest_before: float
    largest_after: float
    squared_error: float
    loss: float
    plain_loss: float | None
    unimproved: int


@torch.no_grad()
def settle(layer: Layer, kept: Kept) -> Settled:
    """Refine what every row keeps, fit its scales; the result has the memory of the kept rows.

    Raises:
        ValueError: a row that is not finite under any candidate.
    """
    target, hessian = layer.cut_to(kept.rounded.weight.shape[1])
    signal = target @ hessian
    energy = float(torch.linalg.vecdot(signal, target).sum()) or 1.0
    best = finish(layer.plan, kept.rounded, target, signal, hessian, layer.plan.bits)
    del signal  # the error takes its memory
    error = float(squared_norm(target - best.weight, hessian).sum())
    if not math.isfinite(error):
        raise ValueError(
            "magr: the toolkit rounded a row to NaN or infinity under every candidate; "
            "give it more damping, or more calibration text"
        )
    return Settled(
        rounded=best,
        picked=kept.picked,
        beta=_mean_beta([layer.plan.candidates[candidate] for candidate in kept.picked.tolist()]),
        largest_before=float(largest_magnitude(target).mean()),
        largest_after=float(kept.largest.mean()),
        squared_error=layer.unit * error,
        loss=error / energy,
        plain_loss=None if kept.plain_error is None else kept.plain_error / energy,
        unimproved=kept.unimproved,
    )


def finish(
    plan: Plan, best: Rounded, target: Tensor, signal: Tensor, hessian: Tensor, bits: int | Tensor
) -> Rounded:
    """Sweeps, each of them on scales that are refitted first; at last the scales of what came out.

    Rounding shrinks a row's output, and a sweep on shrunken scales shrinks it again.

    Args:
        best: its weight is changed in place.
        signal: the target times the Hessian, [out, in].
        bits: of the grids, which may be every row's own, [out, 1].
    """
    highest = best.lowest + 2**bits - 1
    for _ in range(plan.sweeps):
        best = _rescale_(plan, best, target, signal, hessian)
        if not _sweep_(best, target, hessian, highest):
            return best
    return _rescale_(plan, best, target, signal, hessian)


def _sweep_(best: Rounded, target: Tensor, hessian: Tensor, highest: int | Tensor) -> bool:
    """Whether any code was moved."""
    group_of, moved = best.group_of.long(), False
    elements = CHUNK_ELEMENTS if target.device.type == "cpu" else DEVICE_CHUNK_ELEMENTS
    count = max(1, elements // target.shape[1])
    chunks = (torch.split(x, count) for x in (best.weight, target, best.scale, best.zero))
    each: Iterable[Any] = torch.split(highest, count) if isinstance(highest, Tensor) else repeat(highest)
    for (rows, wanted, scale, zero), top in zip(zip(*chunks, strict=True), each, strict=False):
        swept = coordinate_descent(
            rows, wanted, hessian, scale[:, group_of], zero[:, group_of],
            lowest=best.lowest, highest=top, sweeps=1,
        )  # fmt: skip
        moved = moved or not torch.equal(swept, rows)
        rows.copy_(swept)
    return moved


def _rescale_(plan: Plan, best: Rounded, target: Tensor, signal: Tensor, hessian: Tensor) -> Rounded:
    """Group scales of least loss, then the factor on the row for its bias; as they are stored."""
    if not plan.corrects_gain:
        return best.store_as_(plan.stored)
    groups = best.scale.shape[1]
    best = best.rescale_(fitted_factors(signal, best.weight, hessian, best.group_of, groups))
    gain = balanced_gain(signal, target, best.weight)
    return best.rescale_(gain[:, None].expand_as(best.scale)).store_as_(plan.stored)


def _mean_beta(picked: Sequence[Candidate]) -> float | None:
    if any(len(candidate.factors) > 1 for candidate in picked):
        return None
    return statistics.fmean(candidate.factors[0] for candidate in picked)
