"""Scoring model folders in a fresh process that never imports magr_gptq."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from magr_gptq.app.quantizing.worker import EngineError


def score(model: str, text: Path, *, engine: str, seqlen: int, limit: int, log: Path) -> dict[str, Any]:
    """What `magr_score.perplexity` finds; the toolkit's output is appended to `log`."""
    return score_all([model], text, engine=engine, seqlen=seqlen, limit=limit, log=log)[0]


def score_all(
    models: list[str], text: Path, *, engine: str, seqlen: int, limit: int, log: Path
) -> list[dict[str, Any]]:
    """What `magr_score.perplexity` finds for each model, one after another in the same process."""
    command = [sys.executable, "-I", "-m", "magr_score.perplexity", *models, str(text), "--engine", engine]
    command += ["--seqlen", str(seqlen), "--limit", str(limit)]
    with log.open("a") as sink:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=sink, text=True)
    if done.returncode:
        raise EngineError(f"scoring {', '.join(models)} failed; what it printed is in {log}")
    return [json.loads(line) for line in done.stdout.splitlines()]
