"""Is the share that halves of the documents tell the one that rounds best? By GPTQ's loss on other text.

    python -m eval.studies.tokens.share MODEL --calibration FILE

Plain GPTQ rounds all layers of the model to 3 bits per channel, in memory. Their Hessians, of unquantized
inputs, are shrunk by ρ, and by the shares that belong to half, twice and four times the noise,
kρ/(1 + (k − 1)ρ). Prints the mean of ‖W − Q‖²_H over that at k = 1, where H is of other text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.lib.baselines import gptq_round, inverse_factor, proxy_loss
from eval.lib.fidelity import CONTEXT
from magr_gptq.app.text import random_windows
from magr_gptq.reduction.shrinkage import shrink_, shrinkage_of_halves

DOCUMENTS = (1, 2, 4, 16)
NOISE = (0.5, 1.0, 2.0, 4.0)
OTHER_WINDOWS, OTHER_SEED = 96, 99
BITS = 3
Halves = dict[nn.Linear, tuple[Tensor, Tensor]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(args.model)(args.calibration.read_text(encoding="utf-8"))[
        "input_ids"
    ]
    other = {m: sum(halves) for m, halves in grams(model, tokens, OTHER_WINDOWS, OTHER_SEED).items()}
    print(f"| documents | {' | '.join(f'{k:g}' for k in NOISE)} |", "|---" * (len(NOISE) + 1) + "|", sep="\n")
    for documents in DOCUMENTS:
        found = [
            losses(module.weight.detach(), halves, other[module])
            for seed in args.seeds
            for module, halves in grams(model, tokens, documents, seed).items()
        ]
        means = (mean(values) for values in zip(*found, strict=True))
        print(f"| {documents} | {' | '.join(f'{value:.3f}' for value in means)} |", flush=True)


@torch.no_grad()
def grams(model: Any, tokens: list[int], documents: int, seed: int) -> Halves:
    """XᵀX of every linear layer's inputs, of every second document each, the first one cut in two."""
    sums: Halves = {}

    def add(module: nn.Linear, arguments: tuple[Tensor]) -> None:
        inputs = arguments[0][0]
        parts = inputs.chunk(2) if module not in sums else (inputs,)
        found = [part.T @ part for part in parts]
        if len(found) == 2:
            sums[module] = (found[0], found[1])
        else:
            sums[module][number % 2].add_(found[0])

    handles = [m.register_forward_pre_hook(add) for m in model.model.modules() if isinstance(m, nn.Linear)]
    for number, window in enumerate(random_windows(tokens, documents, CONTEXT, seed=seed)):  # noqa: B007
        model.model(input_ids=torch.tensor([window]), use_cache=False)
    for handle in handles:
        handle.remove()
    return sums


def losses(weight: Tensor, halves: tuple[Tensor, Tensor], other: Tensor) -> list[float]:
    """On the other text, over that at k = 1."""
    rho = shrinkage_of_halves(*halves)
    found = []
    for noise in NOISE:
        hessian = shrink_(halves[0] + halves[1], noise * rho / (1 + (noise - 1) * rho))
        rounded = gptq_round(weight, inverse_factor(hessian), BITS, -1)
        found.append(proxy_loss(rounded, weight, other))
    return [loss / found[NOISE.index(1.0)] for loss in found]


if __name__ == "__main__":
    main()
