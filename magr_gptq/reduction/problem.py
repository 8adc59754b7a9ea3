"""What `reduce` minimises for a layer, and the solver that does so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from magr_gptq.config import Derived, Penalty, Plan
from magr_gptq.reduction.admm import Admm
from magr_gptq.reduction.descent import descent
from magr_gptq.reduction.factorization import Factorization, Share
from magr_gptq.reduction.groups import group_count
from magr_gptq.reduction.hessian import ScaledHessian, squared_norm
from magr_gptq.reduction.penalty import LinfPenalty, derived_penalty, linear_penalty


@dataclass(frozen=True)
class Problem:
    """One layer's objective and its solver, shared by all rows.

    error_norm_: (w − ŵ)H(w − ŵ)ᵀ of every row, which it overwrites; unit: in which H is measured there.
    objective_unit: in which the objective is told, which is 1 where H is scaled to λmax = 1.
    """

    unit: Tensor
    objective_unit: Tensor
    error_norm_: Callable[[Tensor], Tensor]
    penalty: LinfPenalty
    solve: Callable[[Tensor], Tensor]
    iterations: int


class Poser:
    """Poses the problems of one layer, which share the Hessian's factorization."""

    def __init__(self, hessian: ScaledHessian, plan: Plan, share: Share | None) -> None:
        self._hessian, self._plan, self._share = hessian, plan, share

    def problem(self, penalty: Penalty) -> Problem:
        """The plan's solver on the layer's squared error plus this penalty."""
        if isinstance(penalty, Derived):
            return self._derived(penalty.strength)
        largest = torch.linalg.eigvalsh(self._hessian.copy())[..., -1:, None]
        groups = group_count(self._hessian.diagonal.shape[-1], self._plan.group_size)
        linear = linear_penalty(penalty.alpha, groups, self._plan.group_size, self._hessian.diagonal)
        if self._plan.proximal:
            return self._by_descent(linear, largest)
        # in the Hessian's own units, as its factorization is
        return self._by_admm(replace(linear, weights=largest * linear.weights), Admm.even(self._hessian))

    def _derived(self, strength: float) -> Problem:
        variances, admm = self._factorization
        penalty = derived_penalty(variances, self._plan.bits, self._plan.group_size, strength)
        return self._by_admm(penalty, admm)

    def _by_admm(self, penalty: LinfPenalty, solver: Admm) -> Problem:
        hessian, count = self._hessian, self._plan.iterations
        return Problem(
            hessian.unit,
            hessian.unit,
            hessian.squared_norm_,
            penalty,
            lambda w: solver.minimise(w, penalty, count),
            count,
        )

    def _by_descent(self, penalty: LinfPenalty, largest: Tensor) -> Problem:
        count, hessian = self._plan.iterations, self._hessian
        scaled = hessian.copy().div_(largest)
        return Problem(
            hessian.unit * largest[..., 0, 0],
            torch.ones_like(hessian.unit),
            lambda change: squared_norm(change, scaled),
            penalty,
            lambda w: descent(w, scaled, penalty, count),
            count,
        )

    @cached_property
    def _factorization(self) -> Factorization:
        compute = partial(Factorization.of, self._hessian)
        return compute() if self._share is None else self._share(compute)
