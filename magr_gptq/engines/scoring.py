"""Scoring a model folder in a fresh process that never imports magr_gptq."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from magr_gptq.engines.run import EngineError

SCRIPT = Path(__file__).parents[1] / "score.py"


def score(model: str, text: Path, *, engine: str, seqlen: int, limit: int, log: Path) -> dict[str, Any]:
    """What `score.py` finds; the toolkit's output is appended to `log`."""
    command = [sys.executable, "-I", str(SCRIPT), model, str(text), "--engine", engine]
    command += ["--seqlen", str(seqlen), "--limit", str(limit)]
    with log.open("a") as sink:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=sink, text=True)
    if done.returncode:
        raise EngineError(f"scoring {model} failed; what it printed is in {log}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
