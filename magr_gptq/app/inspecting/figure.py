"""What `magr-gptq inspect` found, as a figure: magnitudes (the paper's Figure 1), ranks and losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magr_gptq.app.inspecting.forecast import LayerForecast

# from the palette of Okabe and Ito, which colour-blind readers can tell apart
COLOURS = {2: "#D55E00", 3: "#0072B2", 4: "#009E73", 8: "#7F7F7F"}
PANELS = 3


def draw(layers: Sequence[LayerForecast], path: Path) -> None:
    """Three layers channel by channel above; rank and predicted loss of all layers below."""
    # an extra, which only the figure needs
    from matplotlib.figure import Figure

    done = [layer for layer in layers if layer.forecasts]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 2 * PANELS, height_ratios=(1.1, 1))
    for i, layer in enumerate(chosen(done)):
        draw_channels(figure.add_subplot(grid[0, 2 * i : 2 * i + 2]), layer)
    figure.axes[0].legend(markerscale=2, frameon=False, loc="upper left")
    draw_ranks(figure.add_subplot(grid[1, :PANELS]), done)
    draw_losses(figure.add_subplot(grid[1, PANELS:]), done)
    figure.savefig(path, dpi=150)


def chosen(layers: Sequence[LayerForecast]) -> list[LayerForecast]:
    """An early layer, one from the middle, a late one; of different kinds where there are some."""
    kinds = list(dict.fromkeys(kind_of(layer.name) for layer in layers))
    found: dict[str, LayerForecast] = {}
    for part in range(PANELS):
        kind = kinds[part * (len(kinds) - 1) // (PANELS - 1)]
        alike = [layer for layer in layers if kind_of(layer.name) == kind]
        layer = alike[(2 * part + 1) * len(alike) // (2 * PANELS)]
        found[layer.name] = layer
    return list(found.values())


def kind_of(name: str) -> str:
    """The last part of a layer's name: q_proj, down_proj, …"""
    return name.rpartition(".")[2]


def draw_channels(axes: Any, layer: LayerForecast) -> None:
    """Largest magnitude of every output channel, before against after."""
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
    for found in layer.forecasts:
        axes.plot(
            found.largest_before.cpu(), found.largest_after.cpu(), linestyle="", marker="o", markersize=2.5,
            alpha=0.5, markeredgewidth=0, color=COLOURS[found.bits], label=f"{found.bits} bits",
        )  # fmt: skip
    limits = (
        0.95 * min(float(found.largest_after.min()) for found in layer.forecasts),
        1.05 * max(float(found.largest_before.max()) for found in layer.forecasts),
    )
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_title(layer.name, fontsize=9)
    axes.set_xlabel("max |w| of an output channel")
    axes.set_ylabel("the same after MagR")


def draw_ranks(axes: Any, layers: Sequence[LayerForecast]) -> None:
    """Fraction rank of every layer's input."""
    axes.plot(
        [100 * (layer.fraction_rank or 0.0) for layer in layers],
        linestyle="", marker="o", markersize=3, color="0.3",
    )  # fmt: skip
    axes.set(ylim=(0, 105), xlabel="linear layer, in the model's order", ylabel="% of the number of inputs")
    axes.set_title("Fraction rank of the input", fontsize=10)
    axes.grid(axis="y", alpha=0.3)


def draw_losses(axes: Any, layers: Sequence[LayerForecast]) -> None:
    """Predicted loss of every layer and bit width: without MagR as a ring, with it as a dot."""
    for found in zip(*(layer.forecasts for layer in layers), strict=True):
        style: dict[str, Any] = {
            "linestyle": "",
            "marker": "o",
            "markersize": 3.5,
            "color": COLOURS[found[0].bits],
        }
        axes.plot([100 * one.loss_before for one in found], markerfacecolor="none", **style)
        axes.plot([100 * one.loss_after for one in found], **style)
    axes.set(yscale="log", xlabel="linear layer, in the model's order", ylabel="% of the squared output")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("Predicted loss: rings without MagR, dots with it", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
