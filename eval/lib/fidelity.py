"""How far a quantized model's predictions on a text are from the original's, and its perplexity there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magr_score.divergence import divergence
from magr_score.perplexity import perplexity

# tokens of a window
CONTEXT = 256
WINDOWS_AT_ONCE = 8
# a result's keys for the other text
ALSO, DIVERGENCE_ALSO = "perplexity_also", "divergence_also"


@torch.no_grad()
def log_probabilities(model: nn.Module, rows: Tensor) -> Tensor:
    """Of every token that could follow: [windows, tokens − 1, vocabulary] float32."""
    parts = rows.split(WINDOWS_AT_ONCE)
    return torch.cat([model(input_ids=some).logits[:, :-1].float().log_softmax(-1) for some in parts])


@dataclass(frozen=True)
class Text:
    """Windows of a text, [windows, tokens], and the original model's `log_probabilities` on them."""

    rows: Tensor
    original: Tensor

    @classmethod
    def of(cls, original: nn.Module, rows: Tensor) -> Text:
        """What a model quantized from `original` is measured on."""
        return cls(rows, log_probabilities(original, rows))

    def perplexity(self, model: nn.Module) -> float:
        """exp of the mean negative log-likelihood of each window's tokens after its first."""
        return perplexity(model, self.rows)

    def divergence(self, model: nn.Module) -> float:
        """Mean over these tokens of KL(p ‖ q) in nats: p is the original's prediction, q that of `model`."""
        return float(divergence(self.original, log_probabilities(model, self.rows)).mean())
