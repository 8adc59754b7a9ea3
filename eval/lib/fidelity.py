"""How far the predictions of quantized models on a text are from the original's.

    python eval/fidelity.py MODEL CHECKPOINT... --text TEXT --limit 64

Perplexity tells less than that where the original is itself wrong on the text: an error may then be a gain.
GPTQ checkpoints are loaded by GPTQModel as it is.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from quality import CONTEXT
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AutoTokenizer

from magr_gptq.app.text import load_text
from magr_score import perplexity as score

WINDOWS_AT_ONCE = 8


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
        return score.perplexity(model, self.rows, str(self.rows.device))

    def divergence(self, model: nn.Module) -> float:
        """Mean over these tokens of KL(p ‖ q) in nats: p is the original's prediction, q that of `model`."""
        total = kl_div(log_probabilities(model, self.rows), self.original, reduction="sum", log_target=True)
        return float(total) / self.rows[:, 1:].numel()


def main() -> None:
    """Print a line for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="what the checkpoints were quantized from")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--limit", type=int, default=256, help="windows of 256 tokens")
    args = parser.parse_args()
    tokens = AutoTokenizer.from_pretrained(args.model)(load_text(args.text))["input_ids"]
    original = score.load_transformers(str(args.model), "cpu").eval()
    text = Text.of(original, score.cut_windows(tokens, CONTEXT, args.limit))
    for folder in args.checkpoints:
        model = score.load_gptqmodel(str(folder), "cpu").eval()
        print(f"{folder}: perplexity {text.perplexity(model):.2f}, divergence {text.divergence(model):.4f}")


if __name__ == "__main__":
    main()
