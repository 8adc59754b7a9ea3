"""Checkpoints that are made to be scored, and not kept longer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.lib.kept import made_once
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import diverge_all

# of a checkpoint, beside the note on how it was made
FOLDER = "checkpoint"


def divergences(
    jobs: Mapping[str, Job], evaluation: Path, worker: Worker, *, seqlen: int, limit: int
) -> dict[str, dict[str, Any]]:
    """As `divergences_in`, and no checkpoint is left."""
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as place:
        return divergences_in(Path(place), jobs, evaluation, worker, seqlen=seqlen, limit=limit)


def divergences_in(
    place: Path, jobs: Mapping[str, Job], evaluation: Path, worker: Worker, *, seqlen: int, limit: int
) -> dict[str, dict[str, Any]]:
    """KL from the model and perplexity of each, by the jobs' names, and what became of its layers.

    They are scored in a process that never imports magr_gptq.

    Args:
        place: absolute; has a folder for each job in the end, by its name. Those that are there already, of
            the same job, are scored as they are.
        jobs: of one model and one engine; where they save is chosen here.
        seqlen, limit: of the scored windows.
    """

    def quantize(job: Job, folder: Path) -> dict[str, Any]:
        outcome = worker.quantize(replace(job, out=str(folder / FOLDER)), listen=lambda _: None)
        return {"quantize_seconds": outcome.seconds, "magr": outcome.summary}

    made = [made_once(place / name, asdict(job), partial(quantize, job)) for name, job in jobs.items()]
    job = next(iter(jobs.values()))
    scores = diverge_all(
        job.model, [str(place / name / FOLDER) for name in jobs], evaluation, engine=job.engine,
        seqlen=seqlen, limit=limit, log=worker.log,
    )  # fmt: skip
    return {name: {**own, **found} for name, own, found in zip(jobs, made, scores, strict=True)}
