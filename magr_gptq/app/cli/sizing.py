"""`--avg-bits`, `--size` and `--plan`: from the options to every layer's bits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from magr_gptq.app.comparing.cells import write_atomically
from magr_gptq.app.console import console, progress_bars, show_event
from magr_gptq.app.planning.decide import Budget, decide, parse_size
from magr_gptq.app.planning.plan import BITS, BitPlan
from magr_gptq.app.planning.planner import require_fitting, survey_of, with_plan
from magr_gptq.app.planning.views import show_plan
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.runtimes import RUNTIMES, Asked, Road, choose_mixed_road
from magr_gptq.errors import InputError

AvgBits = Annotated[
    float | None,
    typer.Option(
        help="Bits by layer, where they count; so many a weight with its scales.", show_default=False
    ),
]
Size = Annotated[
    str | None,
    typer.Option(help="The same, for files of at most this size, such as 4GB.", show_default=False),
]
GroupSizes = Annotated[
    str | None,
    typer.Option(
        help="With --avg-bits or --size: each layer takes one of these, such as 128,64; if left out, "
        "--group-size or the whole row.",
        show_default=False,
    ),
]
Head = Annotated[
    bool, typer.Option("--head", help="With --avg-bits or --size: the output layer gets bits, too.")
]
KEPT = "bits.json"
# the one engine that quantizes an output layer in GPTQ's format
HEAD_ENGINE = "gptqmodel"


@dataclass
class Sizing:
    """What was asked for, a budget or a plan's file, and the plan that came of it.

    bits, group_sizes: that a layer may have, see `survey_of`. fuses: whether what runs the result runs
    several layers as one; where no runtime is named it may. head: the output layer is planned, too.
    """

    budget: Budget | None = None
    file: Path | None = None
    bits: tuple[int, ...] = BITS
    group_sizes: tuple[int, ...] = ()
    fuses: bool = True
    head: bool = False
    plan: BitPlan | None = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        bits: object | None,
        avg_bits: float | None,
        size: str | None,
        plan: Path | None,
        group_sizes: str | None,
        head: bool = False,
    ) -> Sizing | None:
        """None where neither a budget nor a plan was given.

        Raises:
            InputError: options that contradict each other, or a budget that no model can meet.
        """
        options = {"--bits": bits, "--avg-bits": avg_bits, "--size": size, "--plan": plan}
        given = [name for name, value in options.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} each say what bits layers have; give one of them")
        if group_sizes is not None and avg_bits is None and size is None:
            raise InputError(f"--group-sizes {group_sizes} belongs to --avg-bits or --size; give one, too")
        if head and avg_bits is None and size is None:
            raise InputError(
                "--head belongs to --avg-bits or --size; a plan has the output layer's bits, or none"
            )
        if plan is not None:
            return cls(file=plan)
        groups = _group_sizes(group_sizes) if group_sizes else ()
        if avg_bits is not None and not BITS[0] <= avg_bits <= 16:
            raise InputError(f"--avg-bits {avg_bits:g}: give bits a weight, between 2 and 8, such as 2.5")
        if size is not None:
            return cls(Budget(size=parse_size(size)), group_sizes=groups, head=head)
        return None if avg_bits is None else cls(Budget(avg_bits=avg_bits), group_sizes=groups, head=head)

    def road(self, runtime: str, asked: Asked) -> Road:
        """The road to a runtime that takes layers of several widths, which is told."""
        road = choose_mixed_road(runtime, asked)
        self.bits, self.fuses = road.mixed, RUNTIMES[runtime].fuses
        bits = ", ".join(map(str, road.mixed))
        console.print(f"For {runtime}: layers of {bits} bits by {road.engine} ({RUNTIMES[runtime].seen})")
        return road

    def make(self, job: Job, log: Path, kept: Path | None = None) -> BitPlan:
        """The plan; kept: where it is written, and where an interrupted run's is found.

        Raises:
            InputError: a plan that this job can't have; a quantized output layer that something can't take.
        """
        job = replace(job, head=self.head)
        _require_head_taken(job, "--head")
        self.plan = self._read(self.file, job, log) if self.file else self._made(job, log, kept)
        return self.plan

    def applied(self, job: Job, log: Path) -> Job:
        """The job with every layer's bits, which are shown."""
        plan = self.make(job, log, self._beside(job))
        show_plan(plan)
        return with_plan(job, plan)

    def keep(self, job: Job, folder: Path) -> None:
        """Write the plan into the finished folder, and remove what was kept for an interrupted run."""
        if self.plan is not None:
            (folder / KEPT).write_text(self.plan.to_json(), encoding="utf-8")
        self._beside(job).unlink(missing_ok=True)

    @staticmethod
    def _beside(job: Job) -> Path:
        out = Path(job.out)
        return out.with_name(f"{out.name}.{KEPT}")

    def _made(self, job: Job, log: Path, kept: Path | None) -> BitPlan:
        assert self.budget is not None
        with progress_bars() as bars:
            bar = bars.add_task("starting", total=None)

            def listen(event: dict[str, Any]) -> None:
                if "text" in event:
                    show_event(bars, bar, "", event)
                else:
                    bars.update(bar, completed=event["done"], total=event["total"])

            found = survey_of(job, log, listen, kept, bits=self.bits, group_sizes=self.group_sizes)
        plan = decide(found, self.budget, engine=job.engine, sym=job.sym, fuses=self.fuses)
        if kept is not None:
            write_atomically(kept, plan.to_json())
        return plan

    def _read(self, path: Path, job: Job, log: Path) -> BitPlan:
        plan = BitPlan.read(path)
        plan.require_alike(self.fuses)
        if foreign := sorted({width.bits for width in plan.widths.values()} - set(self.bits)):
            raise InputError(
                f"--plan {path} has layers of {foreign[0]} bits, and --for {job.runtime} loads "
                f"{', '.join(map(str, self.bits))} side by side"
            )
        _require_head_taken(replace(job, head=plan.head is not None), f"--plan {path} has an output layer")
        require_fitting(plan, job, log)
        return plan


def _require_head_taken(job: Job, asked: str) -> None:
    """InputError where the output layer is to be quantized, and something does not take that.

    asked: which option asks for it.
    """
    if not job.head:
        return
    if job.engine != HEAD_ENGINE:
        raise InputError(f"{asked}: {job.engine} leaves that layer as it is; use --engine {HEAD_ENGINE}")
    if job.runtime is not None and not RUNTIMES[job.runtime].head:
        able = " or ".join(name for name, runtime in RUNTIMES.items() if runtime.head)
        raise InputError(f"{asked}: {job.runtime} loads no quantized output layer; it is for {able} alone")
    if job.tune:
        raise InputError(f"{asked}: --tune takes no quantized output layer; leave out one of the two")


def _group_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or any(size != -1 and size < 1 for size in sizes):
        raise InputError(f"--group-sizes {text}: give positive numbers, or -1, with commas between: 128,64")
    return tuple(dict.fromkeys(sizes))
