r"""What each part of the default brings: one setting changed at a time, the others as they are.

    python -m eval.lib.simulate magr_gptq/app/demo/model \
        --calibration magr_gptq/app/demo/text/calibration.txt \
        --evaluation magr_gptq/app/demo/text/evaluation.txt --limit 128 \
        --settings eval/studies/ablation/settings.json --out eval/studies/ablation/results/ablation.jsonl
    python -m eval.studies.ablation.run eval/studies/ablation/results/ablation.jsonl

Prints a table of perplexities and draws the parts that are numbers into a .png next to the records.
A setting's name is "grid | part | value".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot

DEFAULT = "the default"
# where the default stands among a part's values
DEFAULT_VALUES = {"iterations": 8.0, "sweeps": 1.0, "calibration rows": 128.0}


class Found(NamedTuple):
    """A setting's perplexity."""

    grid: str
    part: str
    value: str
    perplexity: float


def read(path: Path) -> list[Found]:
    """All settings but the unquantized model."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    named = [(line["name"].split(" | "), line["perplexity"]) for line in lines if "|" in line["name"]]
    return [Found(grid, part, value, perplexity) for (grid, part, value), perplexity in named]


def table(found: list[Found]) -> str:
    """A line for every part and value, a column for every grid, as markdown."""
    grids = list(dict.fromkeys(one.grid for one in found))
    values = {(one.part, one.value, one.grid): one.perplexity for one in found}
    lines = ["| | | " + " | ".join(grids) + " |", "|---" * (len(grids) + 2) + "|"]
    for part, value in dict.fromkeys((one.part, one.value) for one in found):
        entries = [values.get((part, value, grid)) for grid in grids]
        shown = ["" if entry is None else f"{entry:.2f}" for entry in entries]
        lines.append(f"| {part} | {value} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def is_number(text: str) -> bool:
    """Whether a value can be put on an axis."""
    return text.replace(".", "", 1).isdigit()


def draw(found: list[Found], path: Path) -> None:
    """Perplexity against each part that is a number, the default dashed: a row of panels a grid."""
    numbers = [one for one in found if is_number(one.value)]
    grids, parts = (list(dict.fromkeys(one[i] for one in numbers)) for i in (0, 1))
    figure, axes = pyplot.subplots(
        len(grids), len(parts), figsize=(2.6 * len(parts), 2.6 * len(grids)), sharey="row", squeeze=False
    )
    for panels, grid in zip(axes, grids, strict=True):
        (default,) = (one.perplexity for one in found if (one.grid, one.value) == (grid, DEFAULT))
        for axis, part in zip(panels, parts, strict=True):
            points = [(float(o.value), o.perplexity) for o in numbers if (o.grid, o.part) == (grid, part)]
            if part in DEFAULT_VALUES:
                points.append((DEFAULT_VALUES[part], default))
            axis.plot(*zip(*sorted(points), strict=True), marker="o")
            axis.axhline(default, color="grey", linestyle="--", linewidth=1)
            axis.set(xscale="symlog" if part == "sweeps" else "log", xlabel=part)
            axis.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points], fontsize=7)
            axis.minorticks_off()
            if part == "sweeps":
                axis.set_xlim(-0.3, 45)  # by itself a scale that goes through zero cuts its points
        panels[0].set_ylabel(f"perplexity, {grid}")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, help="what simulate.py wrote")
    path = parser.parse_args().records
    found = read(path)
    print(table(found))
    draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
