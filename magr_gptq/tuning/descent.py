"""The optimizer and its schedule; nothing of them depends on the model, as every step is a share."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

# of a number's own magnitude, the largest step; measured in eval/studies/tune
RATE = 3e-3
# gradients of hundreds of steps ago say little about a hundred steps in all
BETAS = (0.9, 0.95)


def descent(offsets: Iterable[Tensor], steps: int) -> tuple[Adam, CosineAnnealingLR]:
    """Adam, and the schedule of its rate: half a wave of cosine, from `RATE` down to nothing.

    Args:
        offsets: θ of `stored.moved`, leaves that require gradients. steps: in all, at least 1.
    """
    adam = Adam(offsets, lr=RATE, betas=BETAS)
    return adam, CosineAnnealingLR(adam, steps)
