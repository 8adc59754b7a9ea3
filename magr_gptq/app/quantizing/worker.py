"""The caller's side of the quantizing process: hand it jobs, hear of its progress."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from magr_gptq.app.processes import Child, Listener
from magr_gptq.app.quantizing.job import Job, Outcome


class Worker(Child):
    """A process that quantizes one job after another; a context manager that ends it.

    log: file for everything that the toolkit prints.
    """

    def __init__(self, log: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="magr-gptq-")
        # GPTQModel writes ./logs into the folder that it runs in
        super().__init__(["-m", "magr_gptq.app.quantizing.child"], log, cwd=self._scratch.name)

    def __enter__(self) -> Worker:
        return self

    def close(self) -> None:
        """Wait for its end, and remove what it left in its folder."""
        super().close()
        self._scratch.cleanup()

    def quantize(self, job: Job, listen: Listener) -> Outcome:
        """Have the job done; InputError where its settings are at fault, EngineError for the rest."""
        return Outcome(**self.ask(asdict(job), listen))
