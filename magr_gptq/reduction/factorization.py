"""What the derived penalty and its solver take from a Hessian; layers with one input can share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from magr_gptq.reduction.admm import Admm
from magr_gptq.reduction.hessian import ScaledHessian
from magr_gptq.reduction.penalty import conditional_variances


class Factorization(NamedTuple):
    """Of a Hessian with its columns in one order, for any weight, bits, group size and strength.

    variances: 1/Uᵢᵢ² of `conditional_variances`, [..., columns]; first, where GPTQModel's cache looks
        for a tensor's device.
    admm: the solver, with a product of [..., columns, columns].
    """

    variances: Tensor
    admm: Admm

    @classmethod
    def of(cls, hessian: ScaledHessian) -> Factorization:
        """Two Choleskys and one inverse."""
        variances = conditional_variances(hessian.copy())
        return cls(variances, Admm.of(hessian, variances))


# calls what it is given, or returns what that has returned for another layer with the same input
Share = Callable[[Callable[[], Factorization]], Factorization]
