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
from transformers import AutoTokenizer

from magr_gptq.app.text import load_text
from magr_score.divergence import divergence
from magr_score.loaders import load_gptqmodel, load_transformers
from magr_score.perplexity import perplexity
from magr_score.windows import cut_windows

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
        return perplexity(model, self.rows, str(self.rows.device))

    def divergence(self, model: nn.Module) -> float:
        """Mean over these tokens of KL(p ‖ q) in nats: p is the original's prediction, q that of `model`."""
        return float(divergence(self.original, log_probabilities(model, self.rows)).mean())


def main() -> None:
    """Print a line for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="what the checkpoints were quantized from")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--limit", type=int, default=256, help="windows of 256 tokens")
    args = parser.parse_args()
    tokens = AutoTokenizer.from_pretrained(args.model)(load_text(args.text))["input_ids"]
    original = load_transformers(str(args.model), "cpu")
    text = Text.of(original, cut_windows(tokens, CONTEXT, args.limit))
    for folder in args.checkpoints:
        model = load_gptqmodel(str(folder), "cpu")
        print(f"{folder}: perplexity {text.perplexity(model):.2f}, divergence {text.divergence(model):.4f}")


if __name__ == "__main__":
    main()
