"""How far a model's predictions are from the unquantized model's."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div


def divergence(original: Tensor, logits: Tensor) -> Tensor:
    """Σ_positions KL(p ‖ q) = Σ_positions Σ_v p_v (log p_v − log q_v), in nats: one number, in float32.

    Args:
        original: logits [..., vocabulary] whose softmax is p; no gradient goes there. logits: those of q.
    """
    p, q = original.detach().float().log_softmax(-1), logits.float().log_softmax(-1)
    return kl_div(q, p, reduction="sum", log_target=True)
