"""The same rows for a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO

from rich.table import Table as Shown

from magr_gptq.app.comparing.cells import UNQUANTIZED
from magr_gptq.app.comparing.formats import decimal, mean_and_spread, percent, signed
from magr_gptq.app.comparing.results import Row, Table

HEADINGS = ("perplexity", "added", "against GPTQ", "gap closed")


def entries(row: Row) -> list[str]:
    """A row's numbers, formatted, in the order of the headings."""
    mean = mean_and_spread(row.mean, row.spread)
    if row.failed:
        mean += f" ({row.failed} not finite)"
    return [mean, signed(row.over), signed(row.against), percent(row.closed)]


def has_paper(table: Table) -> bool:
    """Whether the paper reports any of the table's cells."""
    return table.paper_unquantized is not None or any(row.paper is not None for row in table.rows)


def terminal(table: Table, quantity: str = HEADINGS[0]) -> Shown:
    """For a rich console."""
    shown = Shown(title=f"{table.name}: {quantity}, unquantized {decimal(table.unquantized)}")
    shown.add_column("")
    shown.add_column("method")
    for heading in _headings(table, quantity):
        shown.add_column(heading, justify="right")
    for row, following in zip(table.rows, [*table.rows[1:], None], strict=True):
        ends = following is None or following.grid != row.grid
        shown.add_row(row.grid, row.label, *_line(table, row), end_section=ends)
    return shown


def markdown(tables: Sequence[Table], quantity: str = HEADINGS[0]) -> str:
    """One table a text, under a heading."""
    parts = []
    for table in tables:
        headings = ["", "method", *_headings(table, quantity)]
        lines = [f"### {table.name}", "", f"Unquantized: {decimal(table.unquantized)}", ""]
        lines += [f"| {' | '.join(headings)} |", f"|---|---|{'---:|' * (len(headings) - 2)}"]
        lines += [f"| {row.grid} | {row.label} | {' | '.join(_line(table, row))} |" for row in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def comma_separated(tables: Sequence[Table]) -> str:
    """All tables as one, unrounded, for spreadsheets and scripts."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["on", "method", "bits", "group_size", "mean", "spread", "seeds", "over_unquantized", "against_gptq",
         "gap_closed_percent", "paper"]
    )  # fmt: skip
    for table in tables:
        unquantized = [table.unquantized, None, 1, 0, None, None, table.paper_unquantized]
        writer.writerow([table.name, UNQUANTIZED, 16, "", *unquantized])
        for row in table.rows:
            numbers = [row.mean, row.spread, len(row.values), row.over, row.against, row.closed, row.paper]
            writer.writerow([table.name, row.method, row.bits, row.group_size, *numbers])
    return buffer.getvalue()


def _headings(table: Table, quantity: str) -> list[str]:
    return [quantity, *HEADINGS[1:], *(["paper"] if has_paper(table) else [])]


def _line(table: Table, row: Row) -> list[str]:
    return [*entries(row), *([decimal(row.paper)] if has_paper(table) else [])]
