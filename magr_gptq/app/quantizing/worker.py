"""The caller's side of the quantizing process: hand it jobs, hear of its progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.errors import InputError

Listener = Callable[[dict[str, Any]], None]


class EngineError(RuntimeError):
    """The toolkit failed; the message holds its last words and where the rest can be read."""


class Worker:
    """A process that quantizes one job after another; a context manager that ends it.

    log: file for everything that the toolkit prints.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._scratch = tempfile.TemporaryDirectory(prefix="magr-gptq-")
        with log.open("a") as sink:
            # GPTQModel writes ./logs into the folder that it runs in
            self._process = subprocess.Popen(
                [sys.executable, "-m", "magr_gptq.app.quantizing.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink,
                cwd=self._scratch.name, env=environment(), text=True, encoding="utf-8",
            )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def quantize(self, job: Job, listen: Listener) -> Outcome:
        """Have the job done; InputError where its settings are at fault, EngineError for the rest."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # a process that is gone already is reported below
        with suppress(BrokenPipeError):
            print(job.to_json(), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "done":
                return Outcome(**event)
            if kind == "error":
                raise self._error(event)
            listen(event)
        raise EngineError(
            f"the quantizing process ended with exit status {self._process.wait()} "
            f"(-9 often means that memory ran out); what it printed is in {self.log}"
        )

    def _error(self, event: dict[str, Any]) -> Exception:
        if event["input"]:
            return InputError(event["message"])
        return EngineError(f"{event['message']}\nThe whole output is in {self.log}")


def environment() -> dict[str, str]:
    """The caller's environment, with what GPTQModel needs where the caller didn't say otherwise."""
    wanted = {"LOGBAR_ANIMATION": "0", "PYTHONUNBUFFERED": "1"}
    if (os.cpu_count() or 1) <= 2:
        # with two cores or fewer GPTQModel plans no worker for loading, then fails for want of one
        wanted["GPTQMODEL_CPU_WORKERS"] = "2"
    if not torch.cuda.is_available():
        # kernels compile for half a minute; models small enough for a CPU never gain that back
        wanted |= {"GPTQMODEL_DISABLE_PACK_EXT": "1", "TORCHDYNAMO_DISABLE": "1"}
    return {**wanted, **os.environ}
