"""The optimizer and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

# of a number's own magnitude, the largest step of a single layer where the divergence is 1 nat; see
# eval/studies/tune
RATE = 0.065
# gradients of hundreds of steps ago say little about a hundred steps in all
BETAS = (0.9, 0.95)
# far below the gradient of one scale of many, which Adam's usual 1e-8 may not be in a large model
EPSILON = 1e-12


def descent(
    offsets: Iterable[Tensor], steps: int, divergence: float, layers: int
) -> tuple[Adam, CosineAnnealingLR]:
    """Adam, and the schedule of its rate: half a wave of cosine, from 0.065·√(KL/layers) down to nothing.

    The divergence is quadratic in the errors of the logits, so its root says how large they are, and how far
    the numbers have to move. Adam's steps have the size of the rate whatever the gradient is, and most of a
    step is noise: a rate that suits 2 bits would cost more at 3 than it brings. The noise of all layers adds
    up, so that each may move the less the more there are.

    Args:
        offsets: θ of `stored.moved`, leaves that require gradients. steps: in all, at least 1.
        divergence: before the first step, in nats a token. layers: how many are tuned.
    """
    # rounding may leave less than nothing of a divergence that is none
    rate = RATE * math.sqrt(max(divergence, 0.0) / layers)
    adam = Adam(offsets, lr=rate, betas=BETAS, eps=EPSILON)
    return adam, CosineAnnealingLR(adam, steps)
