"""The figures of a comparison: small panels, one idea each, that read on a phone as on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from magr_gptq.app.comparing.cells import Record, slug
from magr_gptq.app.comparing.methods import METHODS
from magr_gptq.app.comparing.results import PERPLEXITY, Row, Table, grid_name
from magr_gptq.app.comparing.table import HEADINGS

# each colour stands for a role; the page replaces it by its own of that role, light or dark
INK, MUTED, LINE, PAPER = "#1c2431", "#667081", "#d9dee6", "#ffffff"
COLOURS = {
    "rtn": "#8a8f99",
    "paper+rtn": "#b0875b",
    "magr+rtn": "#6ca893",
    "gptq": "#2f6fb4",
    "paper": "#c46a1c",
    "paper+30": "#8f4a10",
    "magr": "#0a8f6d",
    "magr+5": "#075e48",
    "planned": "#8b3fa8",
}
MARKERS = {
    "rtn": "x", "paper+rtn": "v", "magr+rtn": "P", "gptq": "s",
    "paper": "^", "paper+30": ">", "magr": "o", "magr+5": "D",
    "planned": "*",
}  # fmt: skip

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "magr-gptq", "font.size": 10, "axes.titlesize": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "axes.edgecolor": LINE, "grid.color": LINE, "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 9,
    "axes.titlelocation": "left", "lines.linewidth": 1.6,
}  # fmt: skip
PANEL = (4.6, 3.3)


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its files, and what it shows in words."""

    name: str
    description: str
    figure: Figure

    def svg(self) -> str:
        """As SVG text."""
        buffer = StringIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        return buffer.getvalue()

    def save(self, folder: Path) -> None:
        """As PNG and as SVG."""
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(folder / f"{self.name}.png", dpi=200, facecolor=PAPER)
            self.figure.savefig(folder / f"{self.name}.svg", metadata={"Date": None}, facecolor=PAPER)


def panel(title: str, across: str, up: str) -> tuple[Figure, Axes]:
    """An empty one, with its title and what its axes are."""
    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.add_subplot()
    # a text's name may hold what would be a formula
    axes.set_title(title, parse_math=False)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def draw_scores(table: Table) -> list[Drawing]:
    """One panel a group size: what quantization adds to the quantity, by bits and method."""
    drawings = []
    for group in dict.fromkeys(row.group_size for row in table.rows):
        rows = [row for row in table.rows if row.group_size == group and row.mean is not None]
        if rows:
            drawings.append(_scores_panel(table, group, rows))
    return drawings


def _scores_panel(table: Table, group: int, rows: list[Row]) -> Drawing:
    kind = "one scale a row" if group == -1 else f"groups of {group}"
    base = table.unquantized if table.quantity == PERPLEXITY else None
    up = HEADINGS[table.quantity] if base is None else f"increase of {table.quantity}, %"
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(f"{table.name}, {kind}", "bits", up)
        bits = sorted({row.bits for row in rows}, reverse=True)
        methods = [name for name in METHODS if any(row.method == name for row in rows)]
        lowest = min(_mean_line(axes, rows, bits, method, methods, base) for method in methods)
        axes.set_xticks(range(len(bits)), [f"{b:g}" for b in bits])
        axes.set_xlim(-0.5, len(bits) - 0.5)
        axes.xaxis.grid(False)
        if lowest > 0:
            log_scale(axes)
        axes.legend(loc="upper left")
    words = f"{table.quantity} on {table.name}, {kind}, over the unquantized model, by bits and method."
    name = slug(f"{table.quantity}-{table.name}" + (f"-g{group}" if group > 0 else ""))
    return Drawing(name, words.capitalize(), figure)


def _mean_line(
    axes: Axes, rows: list[Row], bits: list[float], method: str, methods: list[str], base: float | None
) -> float:
    """Draw one method; its lowest value."""
    mine = sorted((row for row in rows if row.method == method), key=lambda row: -row.bits)
    aside = 0.07 * (methods.index(method) - (len(methods) - 1) / 2)
    scale = 1.0 if base is None else 100 / base
    values = [scale * ((row.mean or 0) - (base or 0)) for row in mine]
    axes.errorbar(
        [bits.index(row.bits) + aside for row in mine], values,
        [scale * (row.spread or 0) for row in mine], color=COLOURS[method], marker=MARKERS[method],
        markersize=6, capsize=3, label=METHODS[method].label,
    )  # fmt: skip
    return min(values)


def log_scale(axes: Axes) -> None:
    """Up the axis, with plain numbers at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_magnitudes(layer: str, record: Record) -> Drawing:
    """One layer's channels: largest magnitude after MagR against before (the paper's Figure 1)."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(_short(layer), "largest magnitude before", "after MagR")
        axes.scatter(record["before"], record["after"], s=9, color=COLOURS["magr"], alpha=0.55, linewidths=0)
        edge = 1.04 * max([*record["before"], *record["after"]])
        axes.plot([0, edge], [0, edge], color=MUTED, linestyle="--", linewidth=1, label="unchanged")
        axes.set_xlim(0, edge)
        axes.set_ylim(0, edge)
        axes.legend(loc="upper left", title=f"median ratio {record['median_ratio']:.2f}", title_fontsize=9)
    described = f"Largest magnitude of each channel of {layer}, after MagR against before."
    return Drawing(slug(f"magnitudes-{layer}"), described, figure)


def draw_layer_errors(grid: tuple[float, int], methods: Mapping[str, Mapping[str, float]]) -> Drawing:
    """The relative output error of every layer at one grid (after the paper's Figure 2)."""
    name = grid_name(*grid)
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(name, "layer, in the order of the model", "relative output error")
        for method in [name for name in METHODS if name in methods]:
            errors = list(methods[method].values())
            places = range(1, len(errors) + 1)
            axes.plot(places, errors, color=COLOURS[method], linewidth=0.9, alpha=0.4)
            axes.scatter(
                places, errors, s=11, color=COLOURS[method], marker=MARKERS[method],
                linewidths=0 if MARKERS[method] != "x" else 1, label=METHODS[method].label,
            )  # fmt: skip
        if all(error > 0 for errors in methods.values() for error in errors.values()):
            log_scale(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        # above the axes, where no curve can pass
        axes.set_title("")
        figure.legend(loc="outside upper left", ncols=2, title=name, alignment="left", title_fontsize=11)
    described = f"Relative squared error of every layer's output at {name}, by method."
    return Drawing(slug(f"layer-errors-{name}"), described, figure)


def _short(layer: str) -> str:
    """The end of a layer's name that tells it from the others: 0.self_attn.q_proj."""
    return ".".join(layer.split(".")[-3:])


def save_all(drawings: Sequence[Drawing], folder: Path) -> None:
    """Every drawing as PNG and SVG."""
    for drawing in drawings:
        drawing.save(folder)
