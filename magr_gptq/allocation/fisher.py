"""A random direction of a model's predictions: what is sent back through the model to weigh its layers."""

from __future__ import annotations

import torch
from torch import Tensor


def random_direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A vector whose covariance is the Fisher information of each token's prediction p = softmax(logits).

        v = √p∘ε − p·(√pᵀε),   ε of random signs:   E[v] = 0,   E[vvᵀ] = diag(p) − ppᵀ

    p − y for a label y that is drawn from p has that covariance, too. But where p is sure of one label, y is
    another seldom, and p − y is next to nothing at all other times; ‖v‖ is about the same at every draw.
    (J. Martens, I. Sutskever and K. Swersky, "Estimating the Hessian by Back-propagating Curvature", ICML
    2012.)

    Args:
        logits: [tokens, labels] floating. generator: of the signs, on the logits' device.

    Returns:
        v, [tokens, labels] float32.
    """
    p = logits.float().softmax(-1)
    signs = torch.randint(0, 2, p.shape, generator=generator, device=p.device, dtype=torch.int8)
    direction = p.sqrt().mul_(signs.mul_(2).sub_(1))
    return direction.sub_(p.mul_(direction.sum(-1, keepdim=True)))
