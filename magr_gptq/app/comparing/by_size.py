"""Divergence against the size of the files: what bits by layer are worth beside one width for all."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

from magr_gptq.app.comparing.cells import slug
from magr_gptq.app.comparing.figures import COLOURS, MARKERS, STYLE, Drawing, log_scale, panel
from magr_gptq.app.comparing.methods import METHODS, PLANNED
from magr_gptq.app.comparing.results import Cost, Row, Table


def draw(table: Table, costs: Sequence[Cost]) -> list[Drawing]:
    """One panel a group size, where some checkpoint has bits by layer."""
    sizes = {(cost.method, cost.bits, cost.group_size): cost.file_bytes / 1e6 for cost in costs}
    groups = dict.fromkeys(row.group_size for row in table.rows if row.method == PLANNED)
    return [
        _drawing(table, group, [row for row in table.rows if row.group_size == group and row.mean], sizes)
        for group in groups
    ]


def _drawing(
    table: Table, group: int, rows: Sequence[Row], sizes: dict[tuple[str, float, int], float]
) -> Drawing:
    kind = "one scale a row" if group == -1 else f"groups of {group}"
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(f"{table.name}, {kind}", "size of the files, MB", "divergence, nats")
        for method in dict.fromkeys(row.method for row in rows):
            points = sorted(
                (sizes[method, row.bits, group], row.mean or 0.0) for row in rows if row.method == method
            )
            axes.plot(
                *zip(*points, strict=True), color=COLOURS[method], marker=MARKERS[method], markersize=6,
                label=METHODS[method].label,
            )  # fmt: skip
        log_scale(axes)
        axes.legend(loc="upper right")
    name = slug(f"divergence-by-size-{table.name}" + (f"-g{group}" if group > 0 else ""))
    return Drawing(name, f"Divergence on {table.name}, {kind}, against the size of the files.", figure)
