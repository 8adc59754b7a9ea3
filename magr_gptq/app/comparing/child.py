"""Running a script that answers with one JSON line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from magr_gptq.app.quantizing.worker import EngineError, environment


def ask(command: list[str], request: dict[str, Any], what: str, log: Path) -> dict[str, Any]:
    """The script's answer to the request, which is its last argument; what it prints goes to the log.

    Raises:
        EngineError: it failed; with the last line that it printed.
    """
    start = log.stat().st_size if log.exists() else 0
    with log.open("a") as sink:
        done = subprocess.run(
            [*command, json.dumps(request)], stdout=subprocess.PIPE, stderr=sink, env=environment(), text=True
        )
    if done.returncode:
        raise EngineError(f"{what} failed: {_last_line(log, start, done.returncode)}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _last_line(log: Path, start: int, status: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else f'exit status {status}'} (all of it is in {log})"
