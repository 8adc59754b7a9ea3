r"""Other models than the demo's: plain GPTQ, the paper's MagR and ours over calibration seeds, in memory.

    for model in QWEN GPT2 OUTLIERS LLAMA GPT2W; do
      python eval/simulate.py $model --calibration magr_gptq/demo/text/calibration.txt \
          --evaluation magr_gptq/demo/text/evaluation.txt --also wikitext-2/test.txt \
          --settings eval/models.json --rows 32 --limit 64 --out eval/results/models.jsonl
    done
    python eval/models.py eval/results/models.jsonl
    python eval/models.py eval/results/models.jsonl --also

Prints mean ± standard deviation over the seeds, a table for each model; with `--also` of the other text. A
setting's name is "grid | method | seed".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from quality import ALSO


def table(lines: list[dict], key: str) -> str:
    """One model's settings as markdown, a row for each method."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        if "|" in line["name"]:
            grid, method, _ = line["name"].split(" | ")
            values[method, grid].append(line[key])
    grids = list(dict.fromkeys(grid for _, grid in values))
    rows = ["| | " + " | ".join(grids) + " |", "|---" * (len(grids) + 1) + "|"]
    for method in dict.fromkeys(method for method, _ in values):
        rows.append(f"| {method} | " + " | ".join(entry(values[method, grid]) for grid in grids) + " |")
    return "\n".join(rows)


def entry(perplexities: list[float]) -> str:
    """mean ± standard deviation; nothing where nothing was measured."""
    if not perplexities:
        return ""
    spread = f" ± {statistics.stdev(perplexities):.2f}" if len(perplexities) > 1 else ""
    return f"{statistics.mean(perplexities):.2f}{spread}"


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, help="what simulate.py wrote")
    parser.add_argument("--also", action="store_true", help="on the other text")
    args = parser.parse_args()
    key = ALSO if args.also else "perplexity"
    models = defaultdict(list)
    for line in map(json.loads, args.records.read_text().splitlines()):
        if key in line:
            models[line["model"]].append(line)
    for model, lines in models.items():
        (unquantized,) = (line[key] for line in lines if line["name"] == "unquantized")
        print(f"{model}, unquantized {unquantized:.2f}\n\n{table(lines, key)}\n")


if __name__ == "__main__":
    main()
