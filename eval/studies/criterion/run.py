r"""Which number of a quantized layer predicts the model's perplexity?

    for model in magr_gptq/app/demo/model GPT2 OUTLIERS; do
      python -m eval.lib.simulate $model --calibration magr_gptq/app/demo/text/calibration.txt \
          --evaluation eval/studies/choice/selection.txt --rows 32 --limit 64 \
          --settings eval/studies/choice/settings.json \
          --out eval/studies/criterion/results/criterion.jsonl
    done
    python -m eval.studies.criterion.run eval/studies/criterion/results/criterion.jsonl

Prints Spearman's rank correlation of held-out perplexity with every criterion over the settings of
each model and bit width, and draws some of them into a .png next to the records.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator
from scipy.stats import spearmanr

from eval.lib.simulate import Measures

Record = dict[str, Any]
Cell = tuple[str, str]
WRITERS = {4: (1, 3), 7: (3, 6)}  # by layers a block: those that add to the residual stream
DRAWN = ("proxy loss", "coherence", "hidden states")
FEWEST = 5  # settings of a cell that a rank correlation is computed over


def mean_of(value: Callable[[Measures], float]) -> Callable[[Record], float]:
    """The mean over a record's layers."""
    return lambda record: statistics.fmean(value(Measures(*layer)) for layer in record["layers"])


def angle(layer: Measures) -> float:
    """The loss that would be left after the best factor on the layer: ‖Q‖²‖Ŵ‖²/⟨Ŵ, Q⟩² − 1 in H."""
    along = 1 - layer.bias
    return (1 - 2 * layer.bias + layer.loss) / along**2 - 1


def of_writers(record: Record) -> float:
    """The mean loss of the layers that write to the residual stream."""
    block = 4 if "gpt2" in record["model"] else 7
    return statistics.fmean(
        layer[0] for index, layer in enumerate(record["layers"]) if index % block in WRITERS[block]
    )


CRITERIA: dict[str, Callable[[Record], float]] = {
    "proxy loss": mean_of(lambda layer: layer.loss),
    "log of the proxy loss": mean_of(lambda layer: math.log(layer.loss)),
    "proxy loss of the residual's writers": of_writers,
    "proxy loss + 3·shrinkage": mean_of(lambda layer: layer.loss + 3 * layer.shrinkage),
    "proxy loss after the best factor": mean_of(angle),
    "coherence": mean_of(lambda layer: layer.coherence),
    "log of the coherence": mean_of(lambda layer: math.log(layer.coherence)),
    "log of proxy loss · coherence": mean_of(lambda layer: math.log(layer.loss * layer.coherence)),
    "bias": mean_of(lambda layer: abs(layer.bias)),
    "hidden states": lambda record: float(record["hidden_error"]),
}


def cell_of(record: Record) -> Cell:
    """A record's model, and its bits and groups."""
    groups = "" if record["group_size"] == -1 else f" g{record['group_size']}"
    return Path(record["model"]).name.replace("model", "demo"), f"W{record['bits']}{groups}"


def correlations(records: list[Record]) -> dict[str, float]:
    """Spearman's ρ of perplexity and each criterion over some settings."""
    perplexities = [record["perplexity"] for record in records]
    return {
        name: float(spearmanr([criterion(record) for record in records], perplexities).statistic)
        for name, criterion in CRITERIA.items()
    }


def by(records: list[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """The records of every value of the key that enough of them have."""
    found = defaultdict(list)
    for record in records:
        found[key(record)].append(record)
    return {value: some for value, some in found.items() if len(some) >= FEWEST}


def table(records: list[Record]) -> str:
    """ρ within each model and bit width, their mean, and over all of a model's settings, as markdown."""
    cells = {cell: correlations(some) for cell, some in by(records, cell_of).items()}
    models = [correlations(some) for some in by(records, lambda record: record["model"]).values()]
    lines = ["| | " + " | ".join(" ".join(cell) for cell in cells) + " | mean of these | a model's all |"]
    lines.append("|---" * (len(cells) + 3) + "|")
    for name in CRITERIA:
        within = [found[name] for found in cells.values()]
        across = statistics.fmean(found[name] for found in models)
        values = [*within, statistics.fmean(within), across]
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def draw(records: list[Record], unquantized: dict[str, float], path: Path) -> None:
    """Rise in perplexity against some criteria: a row of panels a model, a colour a bit width."""
    models = by(records, lambda record: record["model"])
    figure, axes = pyplot.subplots(
        len(models), len(DRAWN), figsize=(4 * len(DRAWN), 3.2 * len(models)), squeeze=False
    )
    for panels, (model, some) in zip(axes, models.items(), strict=True):
        for axis, name in zip(panels, DRAWN, strict=True):
            for (_, grid), settings in by(some, cell_of).items():
                rise = [100 * (record["perplexity"] / unquantized[model] - 1) for record in settings]
                value = [CRITERIA[name](record) for record in settings]
                rank = spearmanr(value, rise).statistic
                axis.scatter(value, rise, s=16, label=f"{grid}, ρ {rank:.2f}")
            axis.set(xscale="log", yscale="log", xlabel=name, title=cell_of(some[0])[0])
            for scale, ticks in ((axis.xaxis, (1, 3)), (axis.yaxis, (1, 2, 3, 5))):
                scale.set_major_locator(LogLocator(subs=ticks))
                scale.set_major_formatter("{x:g}")
                scale.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        panels[0].set_ylabel("rise in perplexity, %")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("records", type=Path, help="what simulate.py wrote")
    path = parser.parse_args().records
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    records = [line for line in lines if "layers" in line]
    print(f"{len(records)} settings")
    print(table(records))
    unquantized = {line["model"]: line["perplexity"] for line in lines if "layers" not in line}
    draw(records, unquantized, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
