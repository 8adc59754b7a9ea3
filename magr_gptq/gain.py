"""The factor on a row's scale that makes its output as large as the original's."""

from __future__ import annotations

import torch
from torch import Tensor

# beyond this a row is not shrunk but lost, and its own direction says nothing
LARGEST = 2.0


def unbiased_gain(original: Tensor, quantized: Tensor, hessian: Tensor) -> Tensor:
    """g = ⟨Ŵ, Ŵ⟩_H / ⟨Ŵ, Q⟩_H of every row, [rows]: the output of g·Q regresses on Ŵ's with slope 1.

    1 where g lies outside [1/2, 2], or where the row has no output.
    """
    signal = original @ hessian
    gain = torch.linalg.vecdot(signal, original) / torch.linalg.vecdot(signal, quantized)
    usable = (gain >= 1 / LARGEST) & (gain <= LARGEST)
    return torch.where(usable, gain, 1.0)
