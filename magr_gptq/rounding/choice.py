"""By what a row chooses among several quantized candidates."""

from __future__ import annotations

import torch
from torch import Tensor

# how many times extra counts what points the same way in all rows, shrinkage here and the bias of outputs in
# their scales; chosen by divergence (eval/studies/choice)
KAPPA = 1.0


def criterion(error: Tensor, shrinkage: Tensor, kappa: float = KAPPA) -> Tensor:
    """‖Ŵ − Q‖²_H + κ‖Ŵ − W'‖²_H of every candidate's rows, by whose least each row is chosen.

    Rounding errors are as good as independent from row to row; what shrinkage takes away points the
    same way in all of them, and costs the model more than its share of the loss.

    Args:
        error, shrinkage: the two squared norms, [candidates, rows]; a shrinkage below 0 is a Hessian's
            rounding, and counts as none.

    Returns:
        [candidates, rows]; infinity where a row is not finite.
    """
    return (error + kappa * shrinkage.clamp_min(0)).nan_to_num(nan=torch.inf)
