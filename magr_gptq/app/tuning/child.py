"""The process that tunes: answers one job, as `magr_gptq.app.processes` has it.

A process of its own, as transformers prints, and as the memory of both models is free when it ends.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from magr_gptq.app.inputs import find_model, local_folder, read_model
from magr_gptq.app.processes import serve
from magr_gptq.app.tuning.checkpoint import read_checkpoint, write_copy
from magr_gptq.app.tuning.job import TuneJob
from magr_gptq.app.tuning.state import State, fingerprint
from magr_gptq.app.tuning.tuning import tune
from magr_gptq.app.tuning.windows import draw_windows
from magr_score.process import Tell


def perform(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Check what was given, tune, save."""
    job = TuneJob(**request)
    tell("stage", text="checking both models")
    checkpoint = read_checkpoint(Path(job.checkpoint))
    files = read_model(local_folder(find_model(job.original)))
    tell("stage", text="reading the calibration text")
    windows = draw_windows(files, job)
    rows = windows.training, windows.held_out
    state = State(Path(job.state), fingerprint([checkpoint.folder, files.folder], rows))
    tuned, numbers = tune(files, checkpoint, windows, job.cut, state, tell)
    write_copy(checkpoint, Path(job.out), numbers)
    return asdict(tuned)


if __name__ == "__main__":
    serve(perform)
