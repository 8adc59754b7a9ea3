"""What `magr-gptq inspect` found, as tables in the terminal and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from rich import box
from rich.markup import escape
from rich.table import Table

from magr_gptq.app.console import console
from magr_gptq.app.inspecting.forecast import Forecast, LayerForecast, spread


def show(layers: Sequence[LayerForecast]) -> None:
    """A line for each layer, a line for each bit width, and what to watch for."""
    done = [layer for layer in layers if layer.forecasts]
    console.print(layer_table(done))
    ranks = spread([layer.fraction_rank for layer in layers if layer.fraction_rank is not None])
    console.print(
        "Fraction rank of the layers' inputs: from {min} to {max} %, mean {mean} %, "
        "quartiles {q25}, {median}, {q75} %".format(**{key: percent(value) for key, value in ranks.items()})
    )
    for found in zip(*(layer.forecasts for layer in done), strict=True):
        before = mean([one.loss_before for one in found])
        after = mean([one.loss_after for one in found])
        console.print(
            f"{found[0].bits} bits: mean predicted loss {percent(before)} % without MagR, "
            f"{percent(after)} % with it; lower in {sum(one.helps for one in found)} of {len(found)} layers"
        )
    for line in remarks(layers):
        console.print(line, style="yellow", markup=False)
    console.print(
        "Predicted loss is a layer's squared output error over its squared output. It compares layers and "
        "settings; it is not the model's perplexity."
    )


def layer_table(layers: Sequence[LayerForecast]) -> Table:
    """Rank, largest magnitude (mean over rows), and for each bit width what is left and the loss."""
    prefix = common_prefix([layer.name for layer in layers])
    table = Table(
        title="What MagR would do to each layer",
        caption="in %: fraction rank of the input, what is left of max |w|, predicted loss without→with MagR",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column(f"layer of\n{escape(prefix)}", overflow="fold")
    for heading in ("rank", "max |w|"):
        table.add_column(heading, justify="right")
    for found in layers[0].forecasts:
        table.add_column(f"W{found.bits}\nleft", justify="right")
        table.add_column(f"W{found.bits}\nloss", justify="right", no_wrap=True)
    for layer in layers:
        largest = float(layer.forecasts[0].largest_before.mean())
        cells = [cell for found in layer.forecasts for cell in forecast_cells(found)]
        table.add_row(
            escape(layer.name[len(prefix) :]), percent(layer.fraction_rank or 0.0), f"{largest:.2g}", *cells
        )
    return table


def forecast_cells(found: Forecast) -> tuple[str, str]:
    """The share of the largest magnitude that is left, and the loss before and after."""
    left = float(found.largest_after.mean() / found.largest_before.mean())
    loss = f"{percent(found.loss_before)}→{percent(found.loss_after)}"
    return percent(left), loss if found.helps else f"[yellow]{loss}[/]"


def common_prefix(names: Sequence[str]) -> str:
    """The leading parts that all names share, with a dot after each; never a whole name."""
    parents = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return "".join(f"{parts[0]}." for parts in shared)


def remarks(layers: Sequence[LayerForecast]) -> Iterator[str]:
    """Where MagR would not help, which layers were left out, and where text was short."""
    for layer in layers:
        worse = [f"{found.bits} bits" for found in layer.forecasts if not found.helps]
        if worse:
            yield f"{layer.name}: MagR would not help at {', '.join(worse)}"
    yield from left_out(layers)
    short = sum(0 < layer.tokens < layer.shape[1] for layer in layers)
    if short:
        yield (
            f"{short} layers were given fewer tokens than they have inputs, which limits their "
            "fraction rank; give more --samples"
        )


def left_out(layers: Sequence[LayerForecast]) -> Iterator[str]:
    """A line for each reason, with how many layers it holds for."""
    for reason in dict.fromkeys(layer.skipped for layer in layers if layer.skipped):
        first, *others = (layer.name for layer in layers if layer.skipped == reason)
        which = f"{1 + len(others)} layers, such as {first}, were" if others else f"{first} was"
        yield f"{which} left out: {reason}"


def percent(share: float) -> str:
    """Two digits, and all before the point: 0.012, 1.2, 12, 123."""
    return f"{100 * share:.0f}" if 100 * share >= 9.95 else f"{100 * share:.2g}"


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)
