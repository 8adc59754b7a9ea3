r"""Does the expected divergence order layers as rounding one of them at a time and measuring does?

    python -m eval.studies.bits.order $M --calibration $C --evaluation $E --out ORDER.json

Every linear layer below the head is rounded alone, by GPTQ with MagR in memory, at each of `--bits`. Then the
divergence of the model is measured on held-out windows, and the layer is put back. Prints the rank
correlation with the expected divergence, and with the error of the layer alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.lib.fidelity import CONTEXT, Text
from eval.lib.simulate import LayerQuantizer, Setting
from magr_gptq import MagRConfig
from magr_gptq.allocation.worth import Width
from magr_gptq.app.inspecting.hessians import layer_inputs
from magr_gptq.app.planning.found import Survey
from magr_gptq.app.planning.survey import layers_to_plan, parted, survey
from magr_gptq.app.text import random_windows
from magr_gptq.reduction.shrinkage import shrink_, shrinkage
from magr_score.windows import TOKENIZER, cut_windows, tokenize

ROWS_AT_ONCE = 8


@torch.no_grad()
def measured(model: Any, found: Survey, batches: list[torch.Tensor], text: Text) -> list[dict[str, Any]]:
    """One record a layer and width."""
    layers = layers_to_plan(model, "gptqmodel")
    records = []
    for given in layer_inputs(model, layers, batches, lambda: None):
        hessian = given.hessian / given.tokens
        shrink_(hessian, shrinkage(hessian, given.tokens))
        for name in given.names:
            weight = layers[name].weight.data
            kept = weight.clone()
            for place, width in enumerate(found.widths):
                setting = Setting(name, "magr", width.bits, width.group_size)
                rounded = LayerQuantizer(setting)(kept, hessian)
                weight.copy_(rounded)
                change = rounded - kept
                records.append(
                    {
                        "layer": name,
                        "bits": width.bits,
                        "measured": text.divergence(model),
                        "expected": found.layers[name].divergences[place],
                        "error": float(torch.linalg.vecdot(change @ hessian, change).sum()),
                    }
                )
                weight.copy_(kept)
    return records


def correlations(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's, by bits, of what is expected and of the error alone with what was measured."""
    table = {}
    for bits in sorted({record["bits"] for record in records}):
        rows = [record for record in records if record["bits"] == bits]
        table[str(bits)] = {
            key: round(float(spearmanr([r[key] for r in rows], [r["measured"] for r in rows])[0]), 3)
            for key in ("expected", "error")
        }
    return table


def main() -> None:
    """Survey, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--group-size", type=int, default=-1)
    parser.add_argument("--rows", type=int, default=64, help="calibration windows of 256 tokens")
    parser.add_argument("--limit", type=int, default=32, help="scored windows of 256 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    beginning, tokens = tokenize(tokenizer, args.calibration.read_text(encoding="utf-8"), TOKENIZER)
    rows = torch.tensor(random_windows(tokens, args.rows, CONTEXT, args.seed, beginning))
    rounding, weighing = (part.split(ROWS_AT_ONCE) for part in parted(rows))
    scored = tokenize(tokenizer, args.evaluation.read_text(encoding="utf-8"), TOKENIZER)[1]
    text = Text.of(model, cut_windows(scored, CONTEXT, args.limit, beginning))
    widths = [Width(bits, args.group_size) for bits in args.bits]
    # one layer alone is rounded, so that no other undoes its error
    config = MagRConfig(target="layer")
    found = survey(
        model, rounding, weighing, widths, engine="gptqmodel", sym=True, config=config,
        advance=lambda *_: None,
    )  # fmt: skip
    records = measured(model, found, list(rows.split(ROWS_AT_ONCE)), text)
    table = correlations(records)
    print(json.dumps(table))
    args.out.write_text(json.dumps({"correlations": table, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
