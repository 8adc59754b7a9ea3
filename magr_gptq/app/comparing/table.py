"""The same rows for a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from io import StringIO

from rich.table import Table as Shown

from magr_gptq.app.comparing.cells import UNQUANTIZED
from magr_gptq.app.comparing.formats import decimal, mean_and_spread, nats, percent, signed
from magr_gptq.app.comparing.results import ACCURACY, DIVERGENCE, PERPLEXITY, Row, Table

HEADINGS = {PERPLEXITY: "perplexity", DIVERGENCE: "divergence, nats", ACCURACY: "accuracy, %"}
ADDED, OTHERS = "added", ("against GPTQ", "gap closed")


def shown_by(quantity: str) -> Callable[[float | None], str]:
    """How a value of the quantity is written."""
    return nats if quantity == DIVERGENCE else decimal


def headings(table: Table) -> list[str]:
    """Of the columns with numbers."""
    # the unquantized model does not diverge from itself: all of a divergence is added
    added = [] if table.quantity == DIVERGENCE else [ADDED]
    return [HEADINGS[table.quantity], *added, *OTHERS, *(["paper"] if has_paper(table) else [])]


def entries(table: Table, row: Row) -> list[str]:
    """A row's numbers, formatted, in the order of the headings."""
    shown = shown_by(table.quantity)
    mean = mean_and_spread(row.mean, row.spread, shown)
    if row.failed:
        mean += f" ({row.failed} not finite)"
    added = [] if table.quantity == DIVERGENCE else [signed(row.over)]
    paper = [decimal(row.paper)] if has_paper(table) else []
    return [mean, *added, signed(row.against, shown), percent(row.closed), *paper]


def has_paper(table: Table) -> bool:
    """Whether the paper reports any of the table's cells."""
    return table.paper_unquantized is not None or any(row.paper is not None for row in table.rows)


def terminal(table: Table) -> Shown:
    """For a rich console."""
    shown = Shown(title=f"{table.name}: {HEADINGS[table.quantity]}{_unquantized(table, ', unquantized {}')}")
    shown.add_column("")
    shown.add_column("method")
    for heading in headings(table):
        shown.add_column(heading, justify="right")
    for row, following in zip(table.rows, [*table.rows[1:], None], strict=True):
        ends = following is None or following.grid != row.grid
        shown.add_row(row.grid, row.label, *entries(table, row), end_section=ends)
    return shown


def markdown(tables: Sequence[Table]) -> str:
    """One table a text or task, under a heading."""
    parts = []
    for table in tables:
        names = ["", "method", *headings(table)]
        unquantized = _unquantized(table, "Unquantized: {}")
        lines = [f"### {table.name}", "", *([unquantized, ""] if unquantized else [])]
        lines += [f"| {' | '.join(names)} |", f"|---|---|{'---:|' * (len(names) - 2)}"]
        lines += [f"| {row.grid} | {row.label} | {' | '.join(entries(table, row))} |" for row in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _unquantized(table: Table, words: str) -> str:
    return "" if table.quantity == DIVERGENCE else words.format(decimal(table.unquantized))


def comma_separated(tables: Sequence[Table]) -> str:
    """All tables as one, unrounded, for spreadsheets and scripts."""
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["on", "method", "bits", "group_size", "mean", "spread", "seeds", "over_unquantized", "against_gptq",
         "gap_closed_percent", "paper", "quantity"]
    )  # fmt: skip
    for table in tables:
        unquantized = [table.unquantized, None, 1, 0, None, None, table.paper_unquantized]
        writer.writerow([table.name, UNQUANTIZED, 16, "", *unquantized, table.quantity])
        for row in table.rows:
            numbers = [row.mean, row.spread, len(row.values), row.over, row.against, row.closed, row.paper]
            writer.writerow([table.name, row.method, row.bits, row.group_size, *numbers, table.quantity])
    return buffer.getvalue()
