r"""Other models than the demo's: plain GPTQ, the paper's MagR and ours over calibration seeds, in memory.

    for model in QWEN GPT2 OUTLIERS LLAMA GPT2W; do
      python -m eval.lib.simulate $model --calibration magr_gptq/app/demo/text/calibration.txt \
          --evaluation magr_gptq/app/demo/text/evaluation.txt --also wikitext-2/test.txt \
          --settings eval/studies/other_models/settings.json --rows 32 --limit 64 \
          --out eval/studies/other_models/results/models.jsonl
    done
    python -m eval.studies.other_models.run eval/studies/other_models/results/models.jsonl
    python -m eval.studies.other_models.run eval/studies/other_models/results/models.jsonl --also

Prints mean ± standard deviation over the seeds, a table for each model; with `--also` of the other text. With
`--divergence` it is that of the predictions from the unquantized model's, in nats per token, and its rank
correlation with the perplexity on the same text, over methods and seeds. A setting's name is
"grid | method | seed".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from scipy.stats import spearmanr

from eval.lib.fidelity import ALSO


def table(lines: list[dict], key: str, digits: int) -> str:
    """One model's settings as markdown, a row for each method."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        if "|" in line["name"]:
            grid, method, _ = line["name"].split(" | ")
            values[method, grid].append(line[key])
    grids = list(dict.fromkeys(grid for _, grid in values))
    rows = ["| | " + " | ".join(grids) + " |", "|---" * (len(grids) + 1) + "|"]
    for method in dict.fromkeys(method for method, _ in values):
        cells = [entry(values[method, grid], digits) for grid in grids]
        rows.append("| " + " | ".join([method, *cells]) + " |")
    return "\n".join(rows)


def entry(values: list[float], digits: int) -> str:
    """mean ± standard deviation; nothing where nothing was measured."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def correlations(lines: list[dict], key: str, other: str) -> str:
    """Spearman's, of two measures of one model's settings in each grid."""
    grids: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        if "|" in line["name"]:
            grids[line["name"].split(" | ")[0]].append(line)
    found = {
        grid: spearmanr([line[key] for line in some], [line[other] for line in some]).statistic
        for grid, some in grids.items()
    }
    return ", ".join(f"{grid} {value:.2f}" for grid, value in found.items())


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, help="what simulate.py wrote")
    parser.add_argument("--also", action="store_true", help="on the other text")
    parser.add_argument("--divergence", action="store_true", help="in place of perplexity")
    args = parser.parse_args()
    perplexity = ALSO if args.also else "perplexity"
    key = perplexity.replace("perplexity", "divergence") if args.divergence else perplexity
    models = defaultdict(list)
    for line in map(json.loads, args.records.read_text().splitlines()):
        if key in line:
            models[line["model"]].append(line)
    for model, lines in models.items():
        (unquantized,) = (line[perplexity] for line in lines if line["name"] == "unquantized")
        print(f"{model}, unquantized {unquantized:.2f}\n\n{table(lines, key, 4 if args.divergence else 2)}\n")
        if args.divergence:
            print(f"rank correlation with perplexity: {correlations(lines, key, perplexity)}\n")


if __name__ == "__main__":
    main()
