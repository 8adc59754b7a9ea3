"""A plan for people: a table in the terminal, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from magr_gptq.app.console import console
from magr_gptq.app.inspecting.figure import COLOURS
from magr_gptq.app.planning.alike import EXPERTS
from magr_gptq.app.planning.plan import BitPlan

# of a table in a terminal; a model of more kinds of layers is shown by its totals
MOST_KINDS = 12


@dataclass(frozen=True)
class Place:
    """Where a layer stands: its block's name and its own name in there; what is in no block is its own."""

    block: str
    kind: str

    @classmethod
    def of(cls, name: str) -> Place:
        """Experts of a mixture, which have one width, count as one."""
        parts = name.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdigit() and EXPERTS not in parts[:i]]
        if not numbered:
            return cls(name, name)
        last = max(numbered)
        kind = ".".join(part for part in parts[last + 1 :] if not part.isdigit())
        return cls(".".join(parts[: last + 1]), kind)


def show_plan(plan: BitPlan) -> None:
    """Bits by block and kind, then what they add up to."""
    kinds = list(dict.fromkeys(Place.of(name).kind for name in plan.widths))
    if len(kinds) <= MOST_KINDS:
        console.print(bits_table(plan, kinds))
    for line in totals(plan):
        console.print(line, markup=False, soft_wrap=True)


def bits_table(plan: BitPlan, kinds: Sequence[str]) -> Table:
    """A row a block, a column a kind of layer."""
    sizes = {width.group_size for width in plan.widths.values()}
    shown = Table(title="Bits of each layer", box=box.SIMPLE_HEAD, padding=(0, 1))
    shown.add_column("block")
    for kind in kinds:
        shown.add_column(escape(kind.rpartition(".")[2]), justify="right")
    for block in dict.fromkeys(Place.of(name).block for name in plan.widths):
        found = {Place.of(n).kind: w for n, w in plan.widths.items() if Place.of(n).block == block}
        cells = [
            "" if kind not in found
            else str(found[kind].bits) + (f" g{found[kind].group_size}" if len(sizes) > 1 else "")
            for kind in kinds
        ]  # fmt: skip
        shown.add_row(escape(block.rpartition(".")[2]), *cells)
    return shown


def totals(plan: BitPlan) -> list[str]:
    """How many weights have which bits, the size, and what is expected of it."""
    shares: dict[int, int] = {}
    for name, width in plan.widths.items():
        shares[width.bits] = shares.get(width.bits, 0) + prod(plan.survey.layers[name].shape)
    parts = [f"{100 * count / plan.weights:.0f} % in {bits} bits" for bits, count in sorted(shares.items())]
    whole, rest = (f"{count / 1e6:,.2f} MB" for count in (plan.file_bytes, plan.survey.rest_bytes))
    lines = [
        f"{len(plan.widths)} layers, {plan.weights:,} weights: {', '.join(parts)}",
        f"{plan.average_bits:.3f} bits a weight with scales and all that is stored for it",
        f"The checkpoint will have at most {whole}; {rest} of that are not quantized",
    ]
    if plan.divergence is not None:
        lines.append(
            f"Expected divergence from the unquantized model: {plan.divergence:.3g} nats a token. It "
            "compares plans of one model; what was measured lay a tenth below to a third above it."
        )
    return lines


def draw_plan(plan: BitPlan, path: Path) -> None:
    """Bits by block and kind above, what each layer adds to the expected divergence below."""
    # an extra, which only the figure needs
    from matplotlib.figure import Figure

    names = list(plan.widths)
    places = [Place.of(name) for name in names]
    kinds = list(dict.fromkeys(place.kind for place in places))
    blocks = list(dict.fromkeys(place.block for place in places))
    figure = Figure(figsize=(max(6, 0.28 * len(blocks) + 3), 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, place in zip(names, places, strict=True):
        across = blocks.index(place.block)
        bits = plan.widths[name].bits
        above.text(across, kinds.index(place.kind), str(bits), ha="center", va="center", color=COLOURS[bits])
    above.set(xlim=(-0.6, len(blocks) - 0.4), ylim=(len(kinds) - 0.5, -0.5), yticks=range(len(kinds)))
    above.set_yticklabels([kind.rpartition(".")[2] for kind in kinds])
    above.set_title(f"Bits of each layer, {plan.average_bits:.2f} a weight on average", loc="left")
    _draw_shares(below, plan, kinds, blocks)
    # where it hides no line
    figure.legend(frameon=False, ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=150)


def _draw_shares(axes: Any, plan: BitPlan, kinds: Sequence[str], blocks: Sequence[str]) -> None:
    for kind in kinds:
        points = [
            (blocks.index(Place.of(name).block), plan.divergence_of(name))
            for name in plan.widths
            if Place.of(name).kind == kind and plan.divergence_of(name)
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=kind.rpartition(".")[2])
    axes.set(yscale="log", xlabel="block", ylabel="expected divergence, nats a token")
