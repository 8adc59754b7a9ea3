"""The caller's side of planning: a survey from a process of its own, and what a plan makes of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from magr_gptq.allocation.worth import Width
from magr_gptq.app.planning.found import Survey
from magr_gptq.app.planning.plan import BITS, BitPlan
from magr_gptq.app.processes import Child, Listener
from magr_gptq.app.quantizing.job import Job
from magr_gptq.errors import InputError

CHILD = ("-m", "magr_gptq.app.planning.child")


def survey_of(
    job: Job,
    log: Path,
    listen: Listener,
    kept: Path | None = None,
    *,
    bits: Sequence[int] = BITS,
    group_sizes: Sequence[int] = (),
) -> Survey:
    """What every width that a layer may take would cost it.

    kept: a plan of an interrupted run, whose survey is used again where it answers the same request.
    group_sizes: to choose among; none are the job's and the whole row.
    """
    widths = widths_among(bits, group_sizes or (job.group_size, -1))
    request = {
        **_layers_request(job), "widths": [[one.bits, one.group_size] for one in widths], "magr": job.magr,
        "sym": job.sym, "calibration": job.calibration, "samples": job.samples, "seqlen": job.seqlen,
        "seed": job.seed, "cut": job.cut,
    }  # fmt: skip
    if kept is not None and kept.exists():
        found = BitPlan.read(kept).survey
        if found.asked == request:
            return found
    with Child(CHILD, log) as child:
        return Survey.from_dict(child.ask(request, listen))


def widths_among(bits: Sequence[int], group_sizes: Sequence[int]) -> list[Width]:
    """All of these bits with all of these groups, but the most bits with the largest groups alone.

    A layer of 8 bits costs next to nothing in any groups.
    """
    sizes = list(dict.fromkeys(group_sizes))
    largest = -1 if -1 in sizes else max(sizes)
    return [Width(b, size) for b in bits for size in sizes if b < max(BITS) or size == largest]


def require_fitting(plan: BitPlan, job: Job, log: Path) -> None:
    """InputError where the plan is for another engine or another model."""
    if plan.engine != job.engine or plan.sym != job.sym:
        made = f"--engine {plan.engine}, {'--sym' if plan.sym else '--no-sym'}"
        raise InputError(f"the plan was made for {made}, which decide what a layer takes; give the same")
    with Child(CHILD, log) as child:
        shapes = child.ask(_layers_request(replace(job, head=plan.head is not None)), lambda _: None)
    plan.require_model({name: (rows, columns) for name, (rows, columns) in shapes.items()}, job.model)


def with_plan(job: Job, plan: BitPlan) -> Job:
    """The job with the plan's widths."""
    widths = {name: (width.bits, width.group_size) for name, width in plan.widths.items()}
    usual = plan.usual
    return replace(
        job, bits=usual.bits, group_size=usual.group_size, widths=widths, head=plan.head is not None
    )


def _layers_request(job: Job) -> dict[str, Any]:
    same = ("model", "engine", "head", "allow_pickle", "trust_remote_code")
    return {name: getattr(job, name) for name in same}
