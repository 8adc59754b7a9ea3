"""The process that measures one cell after another on one device, as `magr_gptq.app.processes` has it.

It leads a process group of its own, so that everything that it started ends with it. Its arguments are a
folder for checkpoints and a log file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from magr_gptq.app.comparing.cells import Cell
from magr_gptq.app.comparing.measure import measure
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.processes import serve
from magr_gptq.app.quantizing.worker import Worker
from magr_score.process import Tell


class Bench:
    """Measures with one worker until a cell fails, for then the worker may be gone; a context manager."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder, self._log = folder, log
        # now, as it imports its toolkit while the unquantized model is scored
        self._worker = Worker(log)

    def measure(self, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """The results of a cell."""

        def listen(event: dict[str, Any]) -> None:
            tell("stage" if "text" in event else "layers", **event)

        cell, plan = Cell(**request["cell"]), Plan.from_dict(request["plan"])
        try:
            return measure(cell, plan, self._folder, self._worker, listen)
        except Exception:
            self._worker.kill()
            self._worker = Worker(self._log)
            raise

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()


if __name__ == "__main__":
    with Bench(Path(sys.argv[1]), Path(sys.argv[2])) as bench:
        serve(bench.measure)
