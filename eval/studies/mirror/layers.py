"""What leaving out mirrored grids costs by layer: the loss of a model's first block, in memory.

    python -m eval.studies.mirror.layers MODEL --calibration FILE

Prints a Markdown table of the mean of ‖W − Q‖²_H / tr(WHWᵀ) over the block's layers, symmetric grids. Every
layer is given the unquantized model's inputs, 16 windows of 256 tokens.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.lib.simulate import LayerQuantizer, Setting, calibrate_and_quantize
from eval.studies.mirror.run import CONTEXT, GRIDS
from magr_gptq.app.text import random_windows

WINDOWS = 16
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain GPTQ": ("gptq", {}),
    "the default": ("magr", {}),
    "`mirror=False`": ("magr", {"mirror": False}),
    "`beta=1`": ("magr", {"beta": 1.0}),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = first_block(args.model, args.calibration, args.seed)
    print(f"| grid | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|", sep="\n")
    for bits, group in GRIDS:
        losses = [
            mean_loss(found, Setting("", method, bits, group, magr)) for method, magr in METHODS.values()
        ]
        print(f"| W{bits} g{group} | {' | '.join(f'{loss:.5f}' for loss in losses)} |", flush=True)


def first_block(folder: Path, text: Path, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Weight [out, in] and Hessian [in, in] of its layers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.model.layers = model.model.layers[:1]
    tokens = AutoTokenizer.from_pretrained(folder)(text.read_text(encoding="utf-8"))["input_ids"]
    found: list[tuple[Tensor, Tensor]] = []

    def keep(weight: Tensor, hessian: Tensor) -> Tensor:
        found.append((weight, hessian))
        return weight

    calibrate_and_quantize(model, torch.tensor(random_windows(tokens, WINDOWS, CONTEXT, seed=seed)), keep)
    return found


def mean_loss(layers: list[tuple[Tensor, Tensor]], setting: Setting) -> float:
    """Over the layers, each measured by itself."""
    quantizer = LayerQuantizer(setting)
    for weight, hessian in layers:
        quantizer(weight, hessian)
    return statistics.mean(measures.loss for measures in quantizer.measures)


if __name__ == "__main__":
    main()
