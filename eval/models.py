r"""Other models than the demo's: plain GPTQ, the paper's MagR and ours over calibration seeds, in memory.

    for model in QWEN GPT2 OUTLIERS LLAMA GPT2W; do
      python eval/simulate.py $model --calibration magr_gptq/demo/text/calibration.txt \
          --evaluation magr_gptq/demo/text/evaluation.txt --also wikitext-2/test.txt \
          --settings eval/models.json --rows 32 --limit 64 --out eval/results/models.jsonl
    done
    python eval/models.py eval/results/models.jsonl
    python eval/models.py eval/results/models.jsonl --also

Prints mean ± standard deviation over the seeds, a table for each model; with `--also` of the other text, with
`--divergence` from the unquantized model in place of perplexity. A setting's name is "grid | method | seed".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from quality import ALSO


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


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, help="what simulate.py wrote")
    parser.add_argument("--also", action="store_true", help="on the other text")
    parser.add_argument("--divergence", action="store_true", help="in nats per token, not perplexity")
    args = parser.parse_args()
    key, digits = ALSO if args.also else "perplexity", 2
    if args.divergence:
        key, digits = key.replace("perplexity", "divergence"), 4
    models = defaultdict(list)
    for line in map(json.loads, args.records.read_text().splitlines()):
        if key in line:
            models[line["model"]].append(line)
    for model, lines in models.items():
        (unquantized,) = (line[key] for line in lines if line["name"] == "unquantized")
        print(f"{model}, unquantized {unquantized:.{digits}f}\n\n{table(lines, key, digits)}\n")


if __name__ == "__main__":
    main()
