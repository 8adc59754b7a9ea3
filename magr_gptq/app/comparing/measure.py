"""Measuring one cell: quantize in a worker, then ask processes without magr_gptq about the checkpoint."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from magr_gptq.app.comparing.cells import PROFILE, UNQUANTIZED, Cell, Record, slug, write_atomically
from magr_gptq.app.comparing.checkpoint import describe
from magr_gptq.app.comparing.methods import PLANNED, job_fields
from magr_gptq.app.comparing.plan import Plan
from magr_gptq.app.planning.decide import Budget, decide
from magr_gptq.app.planning.planner import survey_of, with_plan
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
        job = _job(cell, plan, out)
        if cell.method == PLANNED:
            job = _planned(job, cell, folder, worker.log, listen)
        outcome = worker.quantize(job, listen)
        record: Record = {
            "quantize_seconds": outcome.seconds,
            "seqlen": outcome.seqlen,
            "beginning": outcome.beginning,
            "overlap": outcome.overlap,
            "versions": outcome.versions,
            "magr": outcome.summary,
            "warning": outcome.warning,
            "layers": outcome.layers,
            "widths": job.widths,
            "checkpoint": describe(out),
        }
        record |= _scores(cell, plan, str(out), worker.log, listen)
        return record | _examination(cell, plan, out, worker.log, listen)


def _job(cell: Cell, plan: Plan, out: Path) -> Job:
    return Job(
        model=plan.model, out=str(out), calibration=plan.calibrations[cell.calibration], engine=plan.engine,
        bits=int(cell.bits), group_size=cell.group_size, sym=plan.sym, samples=plan.samples,
        seqlen=plan.seqlen, seed=cell.seed, cut=plan.cut, **job_fields(cell.method, plan.positive_scales),
    )  # fmt: skip


def _planned(job: Job, cell: Cell, folder: Path, log: Path, listen: Listener) -> Job:
    """The job with bits by layer; the survey is kept for the other sizes of this calibration."""
    listen({"text": "weighing the layers"})
    kept = folder / f"survey-g{cell.group_size}-{slug(cell.calibration)}-seed{cell.seed}.json"
    found = survey_of(job, log, _stages(listen), kept)
    bits = decide(found, Budget(avg_bits=cell.bits), engine=job.engine, sym=job.sym)
    write_atomically(kept, bits.to_json())
    return with_plan(job, bits)


def _stages(listen: Listener) -> Listener:
    """Leaves out the counts of a survey, which are not of layers that are quantized."""
    return lambda event: listen(event) if "text" in event else None


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
