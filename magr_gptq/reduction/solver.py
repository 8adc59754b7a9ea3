"""`reduce`: the weight of smaller largest magnitude that gives almost the same output."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from magr_gptq.config import MagRConfig, Penalty, Plan
from magr_gptq.reduction.arguments import check_arguments, check_values
from magr_gptq.reduction.factorization import Share
from magr_gptq.reduction.groups import largest_magnitude
from magr_gptq.reduction.hessian import ScaledHessian, diagonal_of
from magr_gptq.reduction.problem import Poser, Problem

# rows are solved in chunks of this many elements: 16 MiB for each of the solver's float32 buffers
CHUNK_ELEMENTS = 2**22
# 64 MiB on a device: a chunk of a wide layer keeps it busy for longer than the host takes to launch it
DEVICE_CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Reduction:
    """What `reduce` found; everything is on the Hessian's device.

    weight: [out, in] float32; of a batch, [batch, out, in], and everything below likewise.
    iterations: of the solver.
    objective_before, objective_after: ½(w − ŵ)H(w − ŵ)ᵀ + penalty(w) of every row, [out].
    squared_change: (w − ŵ)H(w − ŵ)ᵀ of every row, [out] float64.
    largest_before, largest_after: max |w| of every row, [out].
    unimproved: how many rows keep their original weight, as the solver's was no better, or not finite.
    """

    weight: Tensor
    iterations: int
    objective_before: Tensor
    objective_after: Tensor
    squared_change: Tensor
    largest_before: Tensor
    largest_after: Tensor
    unimproved: int = 0


@torch.no_grad()
def reduce(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int = -1,
    order: Tensor | None = None,
    config: MagRConfig | None = None,
) -> Reduction:
    """Shrink the largest magnitudes of a layer's weight while keeping its output.

        argmin_w ½(w − ŵ)H(w − ŵ)ᵀ + penalty(w)   for every row ŵ of the weight

    The penalty is ½γ‖w‖∞² derived from bits and Hessian, or the paper's α‖w‖∞ with H scaled to
    λmax = 1 (arXiv 2406.00800, equation 6); with groups it is summed over a row's groups. Scaling
    H by a factor changes nothing. A row whose objective would rise keeps its original weight.

    A batch of layers of one shape, such as a mixture's experts, is solved at once: one more dimension
    in front of all tensors, results as from one call a layer but for rounding.

    On a CPU it needs at most four times the memory of the weight and twice that of the Hessian beside
    them, where both are float32 and no order is given.

    Args:
        weight: Ŵ, [out, in], any floating dtype.
        hessian: H = XᵀX up to a factor, [in, in], symmetric, positive semi-definite; not changed.
        bits: of the grid that the weight will be rounded to, 2 to 8.
        group_size: consecutive columns that share a scale; −1 is the whole row, the last may be short.
        order: [in], the order of columns in which groups are formed and columns are rounded.
        config: the penalty and its solver; None is `MagRConfig()`.

    Raises:
        ValueError: a shape, value, bits or group_size that makes no sense, with the remedy.
    """
    config = config or MagRConfig()
    plan = config.resolve(bits, group_size, order)
    return reduce_each(weight, hessian, plan, (config.penalty(group_size),))[0]


@torch.no_grad()
def reduce_each(
    weight: Tensor,
    hessian: Tensor,
    plan: Plan,
    penalties: Sequence[Penalty | None],
    share: Share | None = None,
) -> list[Reduction]:
    """`reduce` under several penalties, with one factorization of the Hessian.

    Args:
        penalties: None leaves the weight as it is.
        share: has the factorization from a layer with the same Hessian, order and device, or computes it;
            not for a batch.
    """
    check_arguments(weight, hessian, plan.bits, plan.group_size, plan.order)
    original = weight.to(hessian.device, torch.float32)
    check_values(original, hessian)
    reached = diagonal_of(hessian).amax(-1) > 0
    if not reached.all():
        message = "magr: the Hessian is zero (no input reached this layer): weight unchanged"
        warnings.warn(message, stacklevel=3)
        return _reduce_reached(reached, original, hessian, plan, penalties)
    order = plan.order
    if order is not None:
        order = order.to(hessian.device, torch.long)
        original = _in_order(original, order)

    def found_on(device: torch.device | str, share: Share | None = None) -> list[Reduction]:
        scaled = ScaledHessian(hessian.to(device), None if order is None else order.to(device))
        return _reduce_each(original.to(device), Poser(scaled, plan, share), penalties)

    try:
        found = found_on(hessian.device, share)
    except torch.OutOfMemoryError:
        if not _has_own_memory(hessian):
            raise
        device = hessian.device
        warnings.warn(f"magr: {device} has no memory for a single row: reduced on the CPU", stacklevel=3)
        found = [_to(device, reduction) for reduction in found_on("cpu")]
    if order is None:
        return found
    back = order.argsort(-1)
    return [replace(reduction, weight=_in_order(reduction.weight, back)) for reduction in found]


def _in_order(weight: Tensor, order: Tensor) -> Tensor:
    """Its columns in this order, [columns], or one of each layer's own, [batch, columns]."""
    if order.ndim == 1:
        return weight[..., order]  # takes no index of the weight's size
    return weight.take_along_dim(order[..., None, :], -1)


def _reduce_reached(
    reached: Tensor, original: Tensor, hessian: Tensor, plan: Plan, penalties: Sequence[Penalty | None]
) -> list[Reduction]:
    """All unchanged but the layers of a batch that some input reached."""
    whole = [_unchanged(original)] * len(penalties)
    if not reached.any():
        return whole
    some = plan if plan.order is None else replace(plan, order=plan.order[reached])
    parts = reduce_each(original[reached], hessian[reached], some, penalties)
    return [_insert(part, into, reached) for part, into in zip(parts, whole, strict=True)]


def _insert(part: Reduction, whole: Reduction, where: Tensor) -> Reduction:
    inserted: dict[str, Any] = {
        name: getattr(whole, name).index_put((where,), tensor) for name, tensor in _tensors(part).items()
    }
    return replace(part, **inserted)


def _tensors(reduction: Reduction) -> dict[str, Tensor]:
    return {name: value for name, value in vars(reduction).items() if isinstance(value, Tensor)}


def _has_own_memory(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def _to(device: torch.device, reduction: Reduction) -> Reduction:
    moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in _tensors(reduction).items()}
    return replace(reduction, **moved)


def _reduce_each(original: Tensor, poser: Poser, penalties: Sequence[Penalty | None]) -> list[Reduction]:
    found = {
        penalty: _unchanged(original) if penalty is None else _reduce_rows(original, poser.problem(penalty))
        for penalty in dict.fromkeys(penalties)
    }
    return [found[penalty] for penalty in penalties]


def _reduce_rows(original: Tensor, problem: Problem) -> Reduction:
    rows, chunk = original.shape[-2], _chunk_rows(original)
    pieces, start = [], 0
    while start < rows:
        some = original[..., start : start + chunk, :].contiguous()
        try:
            pieces.append(_reduce_chunk(some, problem))
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk = -(-chunk // 2)
            continue
        start += chunk
    joined: dict[str, Any] = {
        name: torch.cat([getattr(piece, name) for piece in pieces], dim=-2 if name == "weight" else -1)
        for name in _tensors(pieces[0])
    }
    return replace(pieces[0], unimproved=sum(piece.unimproved for piece in pieces), **joined)


def _chunk_rows(original: Tensor) -> int:
    elements = DEVICE_CHUNK_ELEMENTS if _has_own_memory(original) else CHUNK_ELEMENTS
    rows = original.shape[-2]
    return min(rows, max(1, elements * rows // original.numel()))


def _reduce_chunk(original: Tensor, problem: Problem) -> Reduction:
    found = problem.solve(original)
    before = problem.penalty.value(original)
    change = problem.error_norm_(found - original)
    after = 0.5 * change + problem.penalty.value(found)
    improved = after <= before  # what is not finite has an objective of NaN
    torch.where(improved[..., None], found, original, out=found)
    unit = problem.objective_unit[..., None]
    return Reduction(
        weight=found,
        iterations=problem.iterations,
        objective_before=(unit * before).float(),
        objective_after=(unit * torch.where(improved, after, before)).float(),
        squared_change=problem.unit[..., None] * torch.where(improved, change, 0),
        largest_before=largest_magnitude(original),
        largest_after=largest_magnitude(found),
        unimproved=int((~improved).sum()),
    )


def _unchanged(original: Tensor) -> Reduction:
    nothing, largest = original.new_zeros(original.shape[:-1]), largest_magnitude(original)
    return Reduction(original.clone(), 0, nothing, nothing, nothing.double(), largest, largest)
