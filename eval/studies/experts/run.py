r"""A mixture's experts that few tokens reach, by plain GPTQ and by the default, on tokens that neither saw.

    python -m eval.studies.experts.run MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/experts/results/experts.jsonl
    python -m eval.studies.experts.run --table eval/studies/experts/results/experts.jsonl

An expert here is a layer of a real block, and the tokens that a random router sends there, so that they are
alike, as an expert's are: of 8 directions the one that the block's input goes along most. GPTQModel's own
GPTQ.quantize rounds the layer with the Hessian of the first n of its calibration tokens. The error is
‖X(W − Q)ᵀ‖² / ‖XWᵀ‖² over its tokens of the evaluation text.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import magr_gptq
from eval.lib.fidelity import CONTEXT
from magr_gptq.app.text import load_text
from magr_score.windows import TOKENIZER, cut_windows, tokenize

TOKENS = (1, 4, 16, 50, 256, 2000)
GRIDS = ((4, 64), (3, -1), (2, 64))
EXPERTS, BLOCKS, LAYERS = 8, (0, 5), ("up_proj", "down_proj")
# the most that either text gives an expert
CALIBRATION_WINDOWS, EVALUATION_WINDOWS = 256, 64


def inputs(model: Any, windows: Tensor, blocks: tuple[int, ...]) -> dict[tuple[int, str], Tensor]:
    """What each layer is given, [tokens, columns], by block and name."""
    found: dict[tuple[int, str], list[Tensor]] = {}
    hooks = []
    for block in blocks:
        for name in LAYERS:
            module, kept = getattr(model.model.layers[block].mlp, name), found.setdefault((block, name), [])
            keep = partial(_keep, kept)
            hooks.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        for rows in windows.split(16):
            model(input_ids=rows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(parts) for key, parts in found.items()}


def _keep(kept: list[Tensor], _module: Any, given: tuple[Tensor]) -> None:
    kept.append(given[0].flatten(0, 1))


def routed(given: Tensor) -> Tensor:
    """The expert of every token, [tokens]: the direction that the block's input goes along most."""
    directions = torch.randn(given.shape[1], EXPERTS, generator=torch.Generator().manual_seed(0))
    return (given @ directions).argmax(-1)


def rounded(weight: Tensor, seen: Tensor, bits: int, group_size: int, magr: bool) -> tuple[Tensor, float]:
    """What GPTQModel makes of the layer, and the share by which correlations were shrunk."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    config = QuantizeConfig(
        bits=bits, group_size=group_size, act_group_aware=group_size != -1, offload_to_disk=False,
        device="cpu", fallback=None, magr=magr,
    )  # fmt: skip
    task = GPTQ(layer, qcfg=config)
    task.quantizer.configure(perchannel=True)
    task.H, task.nsamples = 2 * seen.T @ seen / len(seen), len(seen)
    found = task.quantize()[0].float()
    return found, config.magr_report.layers[-1].shrinkage if magr else 0.0


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every expert, number of tokens and grid."""
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    given = []
    limits = ((args.calibration, CALIBRATION_WINDOWS), (args.evaluation, EVALUATION_WINDOWS))
    for text, limit in limits:
        beginning, tokens = tokenize(tokenizer, load_text(text), TOKENIZER)
        given.append(inputs(model, cut_windows(tokens, CONTEXT, limit, beginning), BLOCKS))
    for block, name in given[0]:
        weight = getattr(model.model.layers[block].mlp, name).weight.detach()
        experts = [routed(side[block, "up_proj"]) for side in given]
        for expert in args.experts:
            x, y = (side[block, name][which == expert] for side, which in zip(given, experts, strict=True))
            for count in (n for n in TOKENS if n <= len(x)):
                for bits, group_size in GRIDS:
                    line = {"block": block, "layer": name, "expert": expert, "columns": x.shape[1]}
                    line |= {"tokens": count, "bits": bits, "group_size": group_size, "held_out": len(y)}
                    for method in ("gptq", "default"):
                        found, line["rho"] = rounded(weight, x[:count], bits, group_size, method == "default")
                        error = (y @ (weight - found).T).square().sum() / (y @ weight.T).square().sum()
                        line[method] = float(f"{float(error):.5g}")
                    yield line


def table(path: Path) -> None:
    """The default's error over plain GPTQ's, mean (largest), by number of tokens."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [f"W{bits}" + (f" g{size}" if size != -1 else "") for bits, size in GRIDS]
    print("| tokens | ρ | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(GRIDS))
    for count in sorted({line["tokens"] for line in lines}):
        here = [line for line in lines if line["tokens"] == count]
        cells = []
        for bits, size in GRIDS:
            ratios = [r["default"] / r["gptq"] for r in here if (r["bits"], r["group_size"]) == (bits, size)]
            cells.append(f"{statistics.geometric_mean(ratios):.2f} ({max(ratios):.2f})")
        print(f"| {count:,} | {statistics.mean(r['rho'] for r in here):.2f} | " + " | ".join(cells) + " |")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--calibration", help="text")
    parser.add_argument("--evaluation", help="held-out text")
    parser.add_argument("--experts", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--table", type=Path, help="print those of this file instead")
    args = parser.parse_args()
    if args.table:
        table(args.table)
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w") as file, magr_gptq.enabled("gptqmodel"):
        for line in measure(args):
            file.write(json.dumps(line) + "\n")
            file.flush()
    table(args.out)


if __name__ == "__main__":
    main()
