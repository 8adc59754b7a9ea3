r"""Proxy loss of the default next to that of its float64 reference, every layer on the very same inputs.

    python -m eval.studies.reference.losses MODEL --calibration FILE \
        --out eval/studies/reference/results/losses.jsonl

Through a whole model a code that falls the other way changes what all later layers see; here each layer gets
the inputs of the unquantized model. Adds a line for every grid that has none, then prints them all.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from eval.lib.baselines import proxy_loss
from eval.lib.fidelity import CONTEXT
from eval.lib.reference import quantize
from eval.lib.simulate import LayerQuantizer, Setting, append, calibrate_and_quantize
from magr_gptq.app.text import load_text, random_windows

# rows are independent: every fourth of them costs less and says the same
EVERY = 4
GRIDS = {"W3": (3, -1), "W2": (2, -1), "W3 g64": (3, 64), "W2 g64": (2, 64)}


def losses(model: PreTrainedModel, rows: Tensor, bits: int, group_size: int) -> dict[str, list[float]]:
    """Of every layer, in the order in which they run."""
    default = LayerQuantizer(Setting("", "magr", bits, group_size))
    found: dict[str, list[float]] = {"default": [], "reference": []}

    def measure(weight: Tensor, hessian: Tensor) -> Tensor:
        some = weight[::EVERY]
        wanted, _ = quantize(some, hessian, bits, group_size)
        for name, quantized in (("default", default(some, hessian)), ("reference", wanted)):
            found[name].append(proxy_loss(quantized.double(), some.double(), hessian.double()))
        return weight

    calibrate_and_quantize(copy.deepcopy(model), rows, measure)
    return found


def table(lines: list[dict]) -> str:
    """Markdown: default / reference − 1 in per cent, of the mean over the layers and of single ones."""
    rows = ["| | mean loss | of single layers |", "|---|---|---|"]
    for line in lines:
        default, reference = line["default"], line["reference"]
        apart = [100 * (mine / best - 1) for mine, best in zip(default, reference, strict=True)]
        mean = 100 * (statistics.mean(default) / statistics.mean(reference) - 1)
        rows.append(f"| {line['grid']} | {mean:+.2f} % | {min(apart):+.1f} to {max(apart):+.1f} % |")
    return "\n".join(rows)


def main() -> None:
    """Measure every grid that has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True, help="text; seed 0 draws rows from it")
    parser.add_argument("--rows", type=int, default=32, help="calibration rows of 256 tokens")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(args.model)(load_text(args.calibration))["input_ids"]
    rows = torch.tensor(random_windows(tokens, args.rows, CONTEXT, seed=0))
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for grid, (bits, group_size) in GRIDS.items():
        if grid not in {line["grid"] for line in lines}:
            line = {"model": str(args.model), "grid": grid, "rows": args.rows}
            lines.append(line | losses(model, rows, bits, group_size))
            append(args.out, lines[-1])
    print(table(lines))


if __name__ == "__main__":
    main()
