"""What `magr_score` measures, in processes that `fork_server` forks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forked import ONE_AT_A_TIME, start, status

from magr_gptq.app import processes
from magr_gptq.app.scoring import VANILLA


def ask_once(module: Sequence[str], request: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """In place of `magr_gptq.app.processes.ask_once`.

    Libraries of lm-eval read the environment as they are imported, so it has a process of its own.
    """
    if tuple(module[: len(VANILLA)]) != VANILLA or module[-1] == "zero-shot":
        return processes.ask_once(module, request, log)
    with ONE_AT_A_TIME:
        begin = log.stat().st_size if log.exists() else 0
        with Forked([*module[len(VANILLA) :], json.dumps(request)], log) as child:
            return child.answer(lambda _: None, begin)


class Forked(processes.Child):
    """A `Child` for one request."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        read, write = os.pipe()
        with log.open("a") as sink:
            start(VANILLA[-1], arguments, Path.cwd(), write, sink.fileno())
        os.close(write)
        self._process = _Process(read)


class _Process:
    """As much of `subprocess.Popen` as such a child needs."""

    stdin = None

    def __init__(self, read: int) -> None:
        self.stdout = os.fdopen(read, encoding="utf-8")
        self._status: int | None = None

    def wait(self) -> int:
        if self._status is None:
            self._status = status()
        return self._status

    def kill(self) -> None:
        """It ends by itself."""
