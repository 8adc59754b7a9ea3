"""The table and the figure of `run.py`'s results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.studies.solver.layers import CONDITION, SUITES, of_shape
from eval.studies.solver.methods import BREVITAS, OURS, OURS_PAPERS_PENALTY, PAPER

METHODS = (PAPER, BREVITAS, OURS_PAPERS_PENALTY, OURS)
HEADER = ("layer", "method", "seconds", "x paper", "x brevitas", "MB", "of 4W+2H", "objective", "of paper's",
          "proxy loss", "of paper's")  # fmt: skip


def ratios(times: dict[str, list[float]], baseline: str) -> dict[str, list[float]]:
    """Per method and repeat, how many times faster than the baseline in the same repeat."""
    if baseline not in times:
        return {}
    return {
        name: [b / s for b, s in zip(times[baseline], values, strict=True)] for name, values in times.items()
    }


def table(record: dict[str, Any]) -> str:
    """Every layer and method as markdown: seconds and speed-ups with their range over the repeats."""
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    for name, layer in record["layers"].items():
        lines += [_line(_cells(name, layer, method)) for method in METHODS if method in layer["seconds"]]
    lines.append(
        "\n~ scaled from fewer steps, see `timed_steps`. MB: at the peak beyond weight W and Hessian H."
    )
    return "\n".join(lines + _sums(record))


def _cells(name: str, layer: dict[str, Any], method: str) -> list[str]:
    scaled = "~" if layer["timed_steps"] < layer["steps"] and method in (PAPER, BREVITAS) else ""
    budget = 4 * (4 * layer["rows"] * layer["columns"] + 2 * layer["columns"] ** 2)
    peak = layer["peak_bytes"].get(method)
    cells = [name, method, scaled + _spread(layer["seconds"][method], ".3g")]
    cells += [
        _spread(layer["times_faster"].get(baseline, {}).get(method), ".1f") for baseline in (PAPER, BREVITAS)
    ]
    cells += ["", ""] if peak is None else [f"{peak / 1e6:.1f}", f"{peak / budget:.2f}"]
    for values in (layer["objective"], layer["proxy_loss"]):
        value = values.get(method)
        cells += ["", ""] if value is None else [f"{value:.4g}", f"{value / values[PAPER]:.3f}"]
    return cells


def _sums(record: dict[str, Any]) -> list[str]:
    """Seconds of whole models: each shape's median times its count, where all shapes were measured."""
    lines = []
    for suite, layers in SUITES.items():
        if sum(layer.count for layer in layers) == len(layers):
            continue
        if not all(layer.name in record["layers"] for layer in layers):
            continue
        for method in METHODS:
            medians = [record["layers"][layer.name]["seconds"].get(method) for layer in layers]
            if None not in medians:
                total = sum(layer.count * m["median"] for layer, m in zip(layers, medians, strict=True))
                count = sum(layer.count for layer in layers)
                lines.append(f"\n{suite}, {method}: {total:.1f} s, sum over {count} layers")
        if suite in record["in_turn"]:
            lines.append(f"\n{suite}, {OURS}: {record['in_turn'][suite]:.1f} s, all layers in turn")
    return lines


def _spread(values: dict[str, float] | None, form: str) -> str:
    if values is None:
        return ""
    return f"{values['median']:{form}} ({values['least']:{form}}–{values['most']:{form}})"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(record: dict[str, Any], path: Path) -> None:
    """Seconds against the width of square layers, both logarithmic; bars are the range over repeats."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    squares = {
        layer["columns"]: layer
        for name, layer in record["layers"].items()
        if name == of_shape(layer["rows"], layer["columns"], condition=CONDITION).name
        and layer["rows"] == layer["columns"]
    }
    widths = sorted(squares)
    if not widths:
        return
    figure, axis = pyplot.subplots(figsize=(5, 3.8))
    for method in METHODS:
        found = [(w, squares[w]["seconds"][method]) for w in widths if method in squares[w]["seconds"]]
        if found:
            middle = [s["median"] for _, s in found]
            below = [s["median"] - s["least"] for _, s in found]
            above = [s["most"] - s["median"] for _, s in found]
            axis.errorbar(
                [w for w, _ in found], middle, (below, above), marker="o", markersize=3, label=method
            )
    axis.set(xscale="log", yscale="log", xlabel="width of a square layer", ylabel="seconds")
    axis.set_xticks(widths, labels=map(str, widths))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=7)
    threads = record["machine"]["threads"]
    axis.set_title(record["machine"]["gpu"] or f"{threads} CPU thread{'s' if threads > 1 else ''}")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
