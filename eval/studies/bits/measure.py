r"""The divergence of checkpoints with bits by layer, in memory, through GPTQModel.

    python -m eval.studies.bits.measure $M --calibration $C --evaluation $E --plan PLAN.json --seed 0
    python -m eval.studies.bits.measure $M --calibration $C --evaluation $E --bits 2 --seed 0

A plan is what `magr-gptq inspect --plan` writes, or one average of what `autoscheme` wrote. Prints one JSON
line. What GPTQModel has rounded is put into a float32 copy of the model, so that nothing is saved nor loaded.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.lib.fidelity import CONTEXT, Text
from magr_gptq.app.planning.written import dynamic_of
from magr_gptq.app.text import random_windows
from magr_gptq.toolkits import enabled
from magr_score.windows import TOKENIZER, cut_windows, tokenize


def widths_of(path: Path) -> dict[str, tuple[int, int]]:
    """Bits and group size of every layer, from a plan or from AutoScheme's widths."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if "layers" in found:
        return {name: (w["bits"], w["group_size"]) for name, w in found["layers"].items()}
    return {name: (bits, group) for name, (bits, group) in found["widths"].items()}


def rounded(args: argparse.Namespace, rows: list[list[int]]) -> tuple[dict[str, Tensor], float]:
    """Every layer's weight after GPTQModel with MagR, and the seconds."""
    with enabled("gptqmodel"):
        from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
        from gptqmodel.quantization.gptq import GPTQ

        found: dict[str, Tensor] = {}
        inner = GPTQ.quantize

        def quantize(self: Any, blocksize: int = 128) -> Any:
            result = inner(self, blocksize=blocksize)
            found[self._named_module.full_name] = result[0].detach().clone().float()
            return result

        GPTQ.quantize = quantize
        usual = (args.bits, args.group_size)
        dynamic = dynamic_of(widths_of(args.plan), usual) if args.plan else None
        config = QuantizeConfig(
            bits=args.bits, group_size=args.group_size, dynamic=dynamic, magr=True, offload_to_disk=False,
            act_group_aware=args.group_size > 0, device="cpu",
        )  # fmt: skip
        model = GPTQModel.load(str(args.model), config, dtype=torch.float32)
        start = time.perf_counter()
        model.quantize(
            [{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows], backend=BACKEND.TORCH
        )
        GPTQ.quantize = inner
    return found, time.perf_counter() - start


def main() -> None:
    """Quantize, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=-1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    original: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    beginning, tokens = tokenize(tokenizer, args.calibration.read_text(encoding="utf-8"), TOKENIZER)
    rows = random_windows(tokens, args.samples, CONTEXT, args.seed, beginning)
    scored = tokenize(tokenizer, args.evaluation.read_text(encoding="utf-8"), TOKENIZER)[1]
    text = Text.of(original, cut_windows(scored, CONTEXT, args.limit, beginning))
    weights, seconds = rounded(args, rows)
    for name, weight in weights.items():
        module = original.get_submodule(name)
        module.weight.data.copy_(weight.reshape(module.weight.shape))
    print(
        json.dumps(
            {
                "plan": args.plan and args.plan.name,
                "bits": args.bits,
                "seed": args.seed,
                "samples": args.samples,
                "divergence": round(text.divergence(original), 5),
                "perplexity": round(text.perplexity(original), 3),
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
