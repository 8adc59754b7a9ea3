"""Measuring one cell: quantize in a worker, then ask processes without magr_gptq about the checkpoint."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, Record
from magr_gptq.app.comparing.checkpoint import describe
from magr_gptq.app.comparing.child import ask
from magr_gptq.app.comparing.methods import job_fields
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import score

WHOLE_TEXT = sys.maxsize

Listen = Callable[[dict[str, Any]], None]


def measure(cell: Cell, plan: Plan, folder: Path, worker: Worker, listen: Listen) -> Record:
    """The cell's results. Checkpoints are written below the folder, and removed again."""
    if cell.method == PROFILE:
        listen({"text": "examining the unquantized layers"})
        request = _profile_request(cell, plan)
        return ask(
            [sys.executable, "-m", "magr_gptq.app.comparing.profile"], request, "the profile", worker.log
        )
    if cell.method == UNQUANTIZED:
        return _scores(cell, plan, plan.model, "transformers", worker.log, listen)
    with tempfile.TemporaryDirectory(prefix=f"{cell.name}-", dir=folder) as scratch:
        out = Path(scratch, "checkpoint")
        outcome = worker.quantize(_job(cell, plan, out), listen)
        record: Record = {
            "quantize_seconds": outcome.seconds,
            "seqlen": outcome.seqlen,
            "versions": outcome.versions,
            "magr": outcome.summary,
            "warning": outcome.warning,
            "layers": outcome.layers,
            "checkpoint": describe(out),
        }
        record |= _scores(cell, plan, str(out), plan.engine, worker.log, listen)
        return record | _examination(cell, plan, out, worker.log, listen)


def _job(cell: Cell, plan: Plan, out: Path) -> Job:
    return Job(
        model=plan.model, out=str(out), calibration=plan.calibrations[cell.calibration], engine=plan.engine,
        bits=cell.bits, group_size=cell.group_size, sym=plan.sym, samples=plan.samples, seqlen=plan.seqlen,
        seed=cell.seed, **job_fields(cell.method),
    )  # fmt: skip


def _scores(cell: Cell, plan: Plan, model: str, engine: str, log: Path, listen: Listen) -> Record:
    """Perplexity on every text, and accuracy in every task."""
    scores = {}
    for name, text in plan.texts_for(cell).items():
        listen({"text": f"scoring on {name}"})
        scores[name] = score(
            model, Path(text.path), engine=engine, seqlen=plan.seqlen, limit=text.limit or WHOLE_TEXT, log=log
        )
    tasks = plan.tasks_for(cell)
    if not tasks:
        return {"scores": scores}
    listen({"text": "zero-shot tasks"})
    return {"scores": scores, "zero_shot": zero_shot(tasks, log, checkpoint=model, engine=engine)}


def zero_shot(tasks: list[str], log: Path, **checkpoint: str) -> Record:
    """What lm-eval finds; without a checkpoint, only whether it has all that it needs."""
    command = [sys.executable, "-I", "-m", "magr_score.zero_shot"]
    return ask(command, {"tasks": tasks, **checkpoint}, "lm-eval", log)


def _examination(cell: Cell, plan: Plan, out: Path, log: Path, listen: Listen) -> Record:
    listen({"text": "measuring inference and layers"})
    text = next(iter(plan.texts_for(cell).values()))
    request = {
        "checkpoint": str(out), "original": plan.model, "engine": plan.engine,
        "text": text.path, "seqlen": plan.seqlen,
    }  # fmt: skip
    return ask([sys.executable, "-I", "-m", "magr_score.examine"], request, "the examination", log)


def _profile_request(cell: Cell, plan: Plan) -> dict[str, Any]:
    return {
        **asdict(cell), "model": plan.model, "calibration": plan.calibrations[cell.calibration],
        "samples": plan.samples, "seqlen": plan.seqlen,
    }  # fmt: skip
