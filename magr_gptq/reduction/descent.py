"""min ½‖X(w − ŵ)‖² + penalty(w) by proximal gradient descent, as in the paper."""

from __future__ import annotations

from torch import Tensor

from magr_gptq.reduction.penalty import LinfPenalty


def descent(original: Tensor, hessian: Tensor, penalty: LinfPenalty, iterations: int) -> Tensor:
    """Proximal gradient descent from ŵ with step 1 (the paper's Algorithm 1), for every row.

        w ← prox_penalty(w − (w − ŵ)H)

    Args:
        original: ŵ, [..., rows, columns].
        hessian: [..., columns, columns] with largest eigenvalue 1, so that the objective never rises.
    """
    w = original.clone()
    add_product_ = w.addmm_ if w.ndim == 2 else w.baddbmm_
    levels = None
    for _ in range(iterations):
        add_product_(w - original, hessian, alpha=-1)
        levels = penalty.prox_(w, levels=levels)
    return w
