"""Watching a run: bars with the time left, and a log file with a line for every cell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, Record
from magr_gptq.app.comparing.formats import decimal, nats


class Watcher:
    """An `Observer` that moves one bar a lane and one over all cells; a quiet one only writes the log."""

    def __init__(
        self, total: int, finished: int, lanes: int, log: Path, console: Console, quiet: bool
    ) -> None:
        self._log, self._console = log, console
        self.bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, disable=quiet,
        )  # fmt: skip
        self._all = self.bars.add_task("all cells", total=total, completed=finished)
        self._lanes = [self.bars.add_task("", total=None) for _ in range(lanes)]
        self._cells: dict[int, Cell] = {}

    def started(self, lane: int, cell: Cell) -> None:
        """Reset the lane's bar."""
        self._cells[lane] = cell
        self._write(f"{cell.name}: started")
        self.bars.reset(self._lanes[lane], description=escape(cell.name), total=None)

    def progress(self, lane: int, event: dict[str, Any]) -> None:
        """Move the lane's bar, or start it again for another stage."""
        name = escape(self._cells[lane].name)
        if "text" in event:
            self._write(f"{self._cells[lane].name}: {event['text']}")
            self.bars.reset(self._lanes[lane], description=f"{name}: {escape(event['text'])}", total=None)
        else:
            self.bars.update(
                self._lanes[lane], description=f"{name}: quantizing layers",
                completed=event["done"], total=event["total"],
            )  # fmt: skip

    def finished(self, lane: int, cell: Cell, record: Record) -> None:
        """Count the cell, and say what came of it."""
        line = f"{cell.name}: {describe(cell, record)}"
        self._write(line)
        self.bars.advance(self._all)
        self.bars.reset(self._lanes[lane], description="", total=None)
        if not self.bars.disable:
            self.bars.console.print(escape(line), style="red" if "error" in record else None, soft_wrap=True)

    def _write(self, line: str) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def describe(cell: Cell, record: Record) -> str:
    """A record in a line."""
    if "error" in record:
        return f"failed: {record['error']}"
    if cell.method == PROFILE:
        return "layers examined"
    scores = [f"{name} {decimal(found['perplexity'])}" for name, found in record["scores"].items()]
    line = f"perplexity {', '.join(scores)}"
    if cell.method == UNQUANTIZED:
        return line
    return f"{line}, divergence {', '.join(nats(found['divergence']) for found in record['scores'].values())}"
