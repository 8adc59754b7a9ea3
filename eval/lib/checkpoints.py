"""Checkpoints that are made to be scored, and not kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import diverge_all


def divergences(
    jobs: Mapping[str, Job], evaluation: Path, worker: Worker, *, seqlen: int, limit: int
) -> dict[str, dict[str, Any]]:
    """KL from the model and perplexity of each, by the jobs' names, and what became of its layers.

    They are scored in a process that never imports magr_gptq.

    Args:
        jobs: of one model and one engine; where they save is chosen here.
        seqlen, limit: of the scored windows.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as place:
        folders = {name: str(Path(place, name)) for name in jobs}
        made = [
            worker.quantize(replace(job, out=folders[name]), listen=lambda _: None)
            for name, job in jobs.items()
        ]
        job = next(iter(jobs.values()))
        scores = diverge_all(
            job.model, list(folders.values()), evaluation, engine=job.engine, seqlen=seqlen, limit=limit,
            log=worker.log,
        )  # fmt: skip
    return {
        name: {"quantize_seconds": outcome.seconds, "magr": outcome.summary, **found}
        for name, outcome, found in zip(jobs, made, scores, strict=True)
    }
