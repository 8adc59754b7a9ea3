"""`reduce`: the weight of smaller largest magnitude that gives almost the same output."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from magr_gptq.admm import Admm
from magr_gptq.config import MagRConfig
from magr_gptq.definite import normalise
from magr_gptq.descent import descent
from magr_gptq.groups import group_count
from magr_gptq.penalty import LinfPenalty, conditional_variances, derived_penalty, linear_penalty

# squares of larger weights, summed over columns, would overflow float32
LARGEST_WEIGHT = 1e13
# rows are solved in chunks of this many elements: 16 MiB for each of the solver's float32 buffers
CHUNK_ELEMENTS = 2**22


@dataclass(frozen=True)
class Reduction:
    """What `reduce` found; everything is on the Hessian's device.

    weight: [out, in] float32.
    iterations: of the solver.
    objective_before, objective_after: ½(w − ŵ)H(w − ŵ)ᵀ + penalty(w) of every row, [out].
    largest_before, largest_after: max |w| of every row, [out].
    kept: how many rows keep their original weight, because the solver's was no better or not finite.
    """

    weight: Tensor
    iterations: int
    objective_before: Tensor
    objective_after: Tensor
    largest_before: Tensor
    largest_after: Tensor
    kept: int = 0


@dataclass(frozen=True)
class _Problem:
    """One layer's objective and its solver, shared by all rows.

    unit: of the objective that is reported, in which the Hessian is measured here.
    """

    unit: float
    hessian: Tensor
    penalty: LinfPenalty
    solve: Callable[[Tensor], Tensor]
    iterations: int

    def objective(self, weight: Tensor, original: Tensor) -> Tensor:
        change = weight - original
        error: Tensor = 0.5 * torch.linalg.vecdot(change @ self.hessian, change)
        return error + self.penalty.value(weight)


class _Poser:
    """Poses the problems of one layer, which share the Hessian's factorizations."""

    def __init__(self, hessian: Tensor, unit: float, bits: int, group_size: int, config: MagRConfig) -> None:
        self._hessian, self._unit = hessian, unit
        self._bits, self._group_size, self._config = bits, group_size, config
        self._iterations = config.solver_iterations()

    def problem(self, strength: float | None) -> _Problem:
        """Of the derived penalty with this constant c, or of the configuration's linear one."""
        if strength is not None:
            penalty = derived_penalty(self._variances, self._bits, self._group_size, strength)
            return self._by_admm(penalty, self._admm)
        alpha = self._config.alpha_for(self._group_size)
        assert alpha is not None
        largest = torch.linalg.eigvalsh(self._hessian)[-1]
        groups = group_count(len(self._hessian), self._group_size)
        penalty = linear_penalty(alpha, groups, self._group_size, self._hessian)
        if self._config.preset == "default":
            # in the Hessian's own units, as its factorization is
            penalty = replace(penalty, weights=largest * penalty.weights)
            return self._by_admm(penalty, Admm.even(self._hessian))
        unit, count = self._hessian / largest, self._iterations
        return _Problem(1.0, unit, penalty, lambda w: descent(w, unit, penalty, count), count)

    def _by_admm(self, penalty: LinfPenalty, solver: Admm) -> _Problem:
        count = self._iterations
        return _Problem(
            self._unit, self._hessian, penalty, lambda w: solver.minimise(w, penalty, count), count
        )

    @cached_property
    def _variances(self) -> Tensor:
        return conditional_variances(self._hessian)

    @cached_property
    def _admm(self) -> Admm:
        return Admm.of(self._hessian, self._variances)


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
    strength = config.strength_for(bits) if config.alpha_for(group_size) is None else None
    return reduce_each(
        weight, hessian, (strength,), bits=bits, group_size=group_size, order=order, config=config
    )[0]


@torch.no_grad()
def reduce_each(
    weight: Tensor,
    hessian: Tensor,
    strengths: Sequence[float | None],
    *,
    bits: int,
    group_size: int,
    order: Tensor | None,
    config: MagRConfig,
) -> list[Reduction]:
    """`reduce` under several strengths c, with one factorization of the Hessian.

    Args:
        strengths: 0 leaves the weight as it is; None is the configuration's linear penalty.
    """
    _check_arguments(weight, hessian, bits, group_size, order)
    original = weight.to(hessian.device, torch.float32)
    hessian, unit = normalise(hessian)
    _check_values(original, hessian)
    if not hessian.any():
        message = "magr: the Hessian is zero (no input reached this layer): weight unchanged"
        warnings.warn(message, stacklevel=3)
        return [_unchanged(original)] * len(strengths)
    if order is not None:
        original, hessian = original[:, order], hessian[order][:, order]
    try:
        found = _reduce_each(original, _Poser(hessian, unit, bits, group_size, config), strengths)
    except torch.OutOfMemoryError:
        if not _has_own_memory(hessian):
            raise
        device = hessian.device
        warnings.warn(f"magr: {device} has no memory for a single row: reduced on the CPU", stacklevel=3)
        poser = _Poser(hessian.cpu(), unit, bits, group_size, config)
        found = [_to(device, reduction) for reduction in _reduce_each(original.cpu(), poser, strengths)]
    if order is None:
        return found
    back = order.argsort()
    return [replace(reduction, weight=reduction.weight[:, back]) for reduction in found]


def _has_own_memory(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def _to(device: torch.device, reduction: Reduction) -> Reduction:
    tensors: dict[str, Any] = {k: x.to(device) for k, x in vars(reduction).items() if isinstance(x, Tensor)}
    return replace(reduction, **tensors)


def _reduce_each(original: Tensor, poser: _Poser, strengths: Sequence[float | None]) -> list[Reduction]:
    found = {
        c: _unchanged(original) if c == 0 else _reduce_rows(original, poser.problem(c))
        for c in set(strengths)
    }
    return [found[c] for c in strengths]


def _reduce_rows(original: Tensor, problem: _Problem) -> Reduction:
    before, after = (original.new_empty(len(original)) for _ in range(2))
    reduced = torch.empty_like(original)
    kept = 0
    chunk = min(len(original), max(1, CHUNK_ELEMENTS // original.shape[1]))
    start = 0
    while start < len(original):
        rows = slice(start, start + chunk)
        try:
            reduced[rows], before[rows], after[rows], improved = _reduce_chunk(original[rows], problem)
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk = -(-chunk // 2)
            continue
        kept += int((~improved).sum())
        start += chunk
    largest_before, largest_after = original.abs().amax(1), reduced.abs().amax(1)
    return Reduction(
        reduced, problem.iterations, problem.unit * before, problem.unit * after,
        largest_before, largest_after, kept,
    )  # fmt: skip


def _reduce_chunk(original: Tensor, problem: _Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = problem.solve(original)
    before = problem.penalty.value(original)
    after = problem.objective(found, original)
    improved = after <= before  # what is not finite has an objective of NaN
    return (
        torch.where(improved[:, None], found, original),
        before,
        torch.where(improved, after, before),
        improved,
    )


def _unchanged(original: Tensor) -> Reduction:
    nothing, largest = original.new_zeros(len(original)), original.abs().amax(1)
    return Reduction(original.clone(), 0, nothing, nothing, largest, largest)


def _check_arguments(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int, order: Tensor | None
) -> None:
    if weight.ndim != 2 or not weight.numel():
        raise ValueError(f"weight has shape {tuple(weight.shape)}; give a matrix [out, in]")
    for name, tensor in (("weight", weight), ("hessian", hessian)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; give a floating dtype")
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(f"hessian has shape {tuple(hessian.shape)}; this weight needs {(columns, columns)}")
    if bits not in range(2, 9):
        raise ValueError(f"bits={bits!r}; give a whole number from 2 to 8")
    if group_size != -1 and group_size < 1:
        raise ValueError(f"group_size={group_size!r}; give at least 1, or -1 for one group a row")
    if order is not None and order.sort().values.tolist() != list(range(columns)):
        raise ValueError(f"order is not a permutation of the {columns} columns")


def _check_values(weight: Tensor, hessian: Tensor) -> None:
    for name, tensor in (("weight", weight), ("hessian", hessian)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity; check the calibration run in float32")
    least, most = (float(x) for x in hessian.diagonal().aminmax())
    if least < 0 or (most == 0 and hessian.any()):
        raise ValueError(
            f"hessian has {least:.3g} on its diagonal, {most:.3g} at most; "
            "XᵀX has none below 0, and is 0 where its diagonal is"
        )
    largest = float(weight.abs().max())
    if largest > LARGEST_WEIGHT:
        raise ValueError(f"weight holds {largest:.3g}; scale it down to at most {LARGEST_WEIGHT:g}")
