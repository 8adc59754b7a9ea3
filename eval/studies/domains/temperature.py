"""Perplexity of a model on texts with its logits divided by a temperature.

    python -m eval.studies.domains.temperature MODEL TEXT TEXT --limit 64

Where a model is too sure of itself, as on text of a domain that it does not know, its perplexity falls when
its outputs are made smaller, and so with any quantization that shrinks them; it says little about the rest.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.lib.fidelity import CONTEXT
from magr_gptq.app.text import load_text
from magr_score.windows import TOKENIZER, cut_windows, tokenize

TEMPERATURES = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)


@torch.no_grad()
def perplexities(model: nn.Module, rows: Tensor) -> list[float]:
    """exp of the mean negative log-likelihood under softmax(logits/T), for every T of TEMPERATURES."""
    totals = [0.0] * len(TEMPERATURES)
    for some in rows.split(8):
        logits, following = model(input_ids=some).logits[:, :-1].flatten(0, 1), some[:, 1:].flatten()
        for index, temperature in enumerate(TEMPERATURES):
            totals[index] += float(cross_entropy(logits / temperature, following, reduction="sum"))
    return [math.exp(total / rows[:, 1:].numel()) for total in totals]


def main() -> None:
    """Print a line for each text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--limit", type=int, default=256, help="windows of 256 tokens of each text")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    print("temperature: " + ", ".join(map(str, TEMPERATURES)))
    for text in args.texts:
        beginning, tokens = tokenize(tokenizer, load_text(text), TOKENIZER)
        found = perplexities(model, cut_windows(tokens, CONTEXT, args.limit, beginning))
        print(f"{text}: " + ", ".join(f"{value:.2f}" for value in found))


if __name__ == "__main__":
    main()
