"""Measuring one cell: quantize in a worker, then ask processes without magr_gptq about the checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, Record
from magr_gptq.app.comparing.checkpoint import describe
from magr_gptq.app.comparing.methods import job_fields
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.processes import Listener, ask_once
from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import diverge, examine, score, zero_shot

PROFILING = ("-m", "magr_gptq.app.comparing.profile")


def measure(cell: Cell, plan: Plan, folder: Path, worker: Worker, listen: Listener) -> Record:
    """The cell's results. Checkpoints are written below the folder, and removed again."""
    if cell.method == PROFILE:
        listen({"text": "examining the unquantized layers"})
        return ask_once(PROFILING, _profile_request(cell, plan), worker.log)
    if cell.method == UNQUANTIZED:
        return _scores(cell, plan, None, worker.log, listen)
    with tempfile.TemporaryDirectory(prefix=f"{cell.name}-", dir=folder) as scratch:
        out = Path(scratch, "checkpoint")
        outcome = worker.quantize(_job(cell, plan, out), listen)
        record: Record = {
            "quantize_seconds": outcome.seconds,
            "seqlen": outcome.seqlen,
            "beginning": outcome.beginning,
            "versions": outcome.versions,
            "magr": outcome.summary,
            "warning": outcome.warning,
            "layers": outcome.layers,
            "checkpoint": describe(out),
        }
        record |= _scores(cell, plan, str(out), worker.log, listen)
        return record | _examination(cell, plan, out, worker.log, listen)


def _job(cell: Cell, plan: Plan, out: Path) -> Job:
    return Job(
        model=plan.model, out=str(out), calibration=plan.calibrations[cell.calibration], engine=plan.engine,
        bits=cell.bits, group_size=cell.group_size, sym=plan.sym, samples=plan.samples, seqlen=plan.seqlen,
        seed=cell.seed, cut=plan.cut, **job_fields(cell.method, plan.positive_scales),
    )  # fmt: skip


def _scores(cell: Cell, plan: Plan, checkpoint: str | None, log: Path, listen: Listener) -> Record:
    """Perplexity and divergence on every text, accuracy in every task; of the model without a checkpoint."""
    engine = ENGINES[plan.engine].loader if checkpoint else "transformers"
    scores = {}
    for name, text in plan.texts_for(cell).items():
        listen({"text": f"scoring on {name}"})
        how: dict[str, Any] = {
            "text": Path(text.path), "engine": engine, "seqlen": plan.seqlen, "limit": text.limit, "log": log,
            "cut": plan.cut,
        }  # fmt: skip
        if checkpoint:
            scores[name] = diverge(plan.model, checkpoint, **how)
        else:
            scores[name] = {**score(plan.model, **how), "divergence": 0.0}
    tasks = plan.tasks_for(cell)
    if not tasks:
        return {"scores": scores}
    listen({"text": "zero-shot tasks"})
    found = zero_shot(tasks, log, checkpoint=checkpoint or plan.model, engine=engine)
    return {"scores": scores, "zero_shot": found}


def _examination(cell: Cell, plan: Plan, out: Path, log: Path, listen: Listener) -> Record:
    listen({"text": "measuring inference and layers"})
    text = next(iter(plan.texts_for(cell).values()))
    loader = ENGINES[plan.engine].loader
    return examine(
        str(out), plan.model, Path(text.path), engine=loader, seqlen=plan.seqlen, log=log, cut=plan.cut
    )


def _profile_request(cell: Cell, plan: Plan) -> dict[str, Any]:
    return {
        **asdict(cell), "model": plan.model, "calibration": plan.calibrations[cell.calibration],
        "samples": plan.samples, "seqlen": plan.seqlen, "cut": plan.cut,
    }  # fmt: skip
