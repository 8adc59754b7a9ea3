r"""How far the default's perplexity and mean proxy loss are from those of its float64 reference.

    python -m eval.lib.simulate MODEL --calibration FILE --evaluation FILE \
        --settings eval/studies/reference/settings.json --rows 32 --limit 64 \
        --out eval/studies/reference/results/reference.jsonl
    python -m eval.studies.reference.run eval/studies/reference/results/reference.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path


def comparison(lines: list[dict]) -> str:
    """Markdown: for every grid, mean and range over the seeds of default / reference − 1, in per cent."""
    found = {line["name"]: line for line in lines if "|" in line["name"]}
    names = [name for name in found if " | reference | " in name]
    rows = ["| | perplexity | mean proxy loss |", "|---|---|---|"]
    for grid in dict.fromkeys(name.split(" | ")[0] for name in names):
        pairs = [
            (found[name.replace("reference", "default")], found[name])
            for name in names
            if name.startswith(f"{grid} | ")
        ]
        rows.append(f"| {grid} | {_apart(pairs, 'perplexity')} | {_apart(pairs, 'mean_proxy_loss')} |")
    return "\n".join(rows)


def _apart(pairs: list[tuple[dict, dict]], key: str) -> str:
    shares = [100 * (default[key] / reference[key] - 1) for default, reference in pairs]
    return f"{statistics.mean(shares):+.2f} % ({min(shares):+.2f} to {max(shares):+.2f})"


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, help="what simulate.py wrote, of one model")
    lines = parser.parse_args().records.read_text().splitlines()
    print(comparison([json.loads(line) for line in lines]))


if __name__ == "__main__":
    main()
