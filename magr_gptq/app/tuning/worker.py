"""The caller's side of the tuning process."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from magr_gptq.app.console import show_event, show_line
from magr_gptq.app.processes import Child
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.tuning.job import Tuned, TuneJob

STATE = ".magr-tune"


def run(job: TuneJob, log: Path, bars: Progress, bar: TaskID) -> Tuned:
    """Have it done, and show on a bar how far it is.

    Raises:
        InputError: what was given is at fault. EngineError: everything else.
    """
    with Child(["-m", "magr_gptq.app.tuning.child"], log) as child:
        return Tuned(**child.ask(asdict(job), partial(show_tuning, bars, bar)))


def tune_in_place(job: Job, log: Path, bars: Progress, bar: TaskID) -> Tuned:
    """Tune what a quantization saved, towards the model, on other windows of its calibration text."""
    state = Path(job.out, STATE)
    asked = TuneJob(
        checkpoint=job.out, original=job.model, out=job.out, state=str(state), calibration=job.calibration,
        samples=job.samples, seqlen=job.seqlen, seed=job.seed, cut=job.cut,
    )  # fmt: skip
    tuned = run(asked, log, bars, bar)
    state.unlink(missing_ok=True)
    return tuned


def show_tuning(bars: Progress, bar: TaskID, event: dict[str, Any]) -> None:
    """Move the bar to where the process says it is."""
    if "losses" not in event:
        show_event(bars, bar, "", event)
        return
    losses = event["losses"]
    (task,) = (task for task in bars.tasks if task.id == bar)
    description = f"tuning: divergence {losses[0]:.4f} → {min(losses):.4f}"
    if task.description != description:
        show_line(bars, f"{event['done']} of {event['total']} steps, {description}")
    bars.update(bar, description=description, completed=event["done"], total=event["total"])
