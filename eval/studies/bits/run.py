r"""Bits by layer against uniform widths at equal size: divergence of saved checkpoints.

    python -m eval.studies.bits.run run MODEL --calibration FILE --evaluation FILE --out FOLDER
    python -m eval.studies.bits.run run MODEL ... --out FOLDER --widths WIDTHS.json
    python -m eval.studies.bits.run run MODEL ... --out FOLDER --group-sizes 64 -1
    python -m eval.studies.bits.run run MODEL ... --out FOLDER --apart
    python -m eval.studies.bits.run table --out FOLDER

`run` quantizes by GPTQModel with `magr=True` at every uniform width and every average, saves, and scores
each checkpoint in a process that never imports magr_gptq. `--widths` adds the widths that `autoscheme` wrote.
With `--group-sizes` each layer of a plan takes one of these, with `--apart` layers that some runtimes fuse
may differ; such plans are cells of their own. Every cell is a JSON file in `--out`; cells that have one are
skipped, so a run can be resumed. `table` compares each with the straight line, and with the line that is
straight in the logarithm, between the uniform widths on either side of it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.lib.checkpoints import divergences
from magr_gptq.allocation.worth import Width
from magr_gptq.app.planning.decide import Budget, decide
from magr_gptq.app.planning.found import Survey
from magr_gptq.app.planning.plan import BitPlan
from magr_gptq.app.planning.planner import survey_of, with_plan
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker

UNIFORM, PLANNED, AUTOSCHEME = "uniform", "planned", "autoscheme"
Widths = dict[str, dict[str, Width]]


@dataclass(frozen=True)
class Cell:
    """One checkpoint to make and score.

    bits: the width, or the average that was asked for. group_sizes: that the layers of a plan choose among;
    where there are none, all have `--group-size`. apart: whether layers that some runtimes fuse may differ.
    """

    kind: str
    bits: float
    seed: int
    group_sizes: tuple[int, ...] = ()
    apart: bool = False

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        return f"{self.kind}-{self.bits:g}{suffix(self.group_sizes, self.apart)}-seed{self.seed}"


def suffix(group_sizes: Sequence[int], apart: bool = False) -> str:
    """What these freedoms of a plan add to its name."""
    groups = f"-g{','.join(map(str, group_sizes))}" if group_sizes else ""
    return groups + ("-apart" if apart else "")


def cells(args: argparse.Namespace, given: Widths) -> Iterator[Cell]:
    """One seed after another."""
    # the same choice has one name, in whatever order it was given
    group_sizes = tuple(sorted(set(args.group_sizes), reverse=True))
    for seed in args.seeds:
        yield from (Cell(UNIFORM, bits, seed) for bits in args.bits)
        yield from (Cell(PLANNED, bits, seed, group_sizes, args.apart) for bits in args.avg_bits)
        for average in given:
            yield Cell(AUTOSCHEME, float(average), seed)


def plan_of(cell: Cell, found: Survey, given: Widths, group_size: int) -> BitPlan:
    """Every layer's width."""
    if cell.kind == PLANNED:
        budget = Budget(avg_bits=cell.bits)
        return decide(found, budget, engine="gptqmodel", sym=True, fuses=not cell.apart)
    if cell.kind == UNIFORM:
        return BitPlan(dict.fromkeys(found.layers, Width(int(cell.bits), group_size)), found, "gptqmodel")
    return BitPlan(given[f"{cell.bits:g}"], found, "gptqmodel")


def run(args: argparse.Namespace) -> None:
    """Measure every cell that has no result yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    given = read_widths(args.widths) if args.widths else {}
    with Worker(args.log.resolve()) as worker:
        for cell in cells(args, given):
            if not path(args.out, cell).exists():
                measure(cell, given, worker, args)


def measure(cell: Cell, given: Widths, worker: Worker, args: argparse.Namespace) -> None:
    """Plan, quantize, score elsewhere, and write the cell; a survey is kept for cells that ask the same."""
    job = Job(
        model=str(args.model.resolve()), out="", calibration=str(args.calibration.resolve()),
        group_size=args.group_size, samples=args.samples, seqlen=args.seqlen, seed=cell.seed,
    )  # fmt: skip
    # not among the results: it names the folders of this machine
    kept = args.log.with_name(f"bits-{args.model.name}{suffix(cell.group_sizes)}-seed{cell.seed}.json")
    start = time.perf_counter()
    group_sizes = cell.group_sizes or (args.group_size,)
    found = survey_of(job, worker.log, lambda _: None, kept, group_sizes=group_sizes)
    plan = plan_of(cell, found, given, args.group_size)
    planning = time.perf_counter() - start
    # AutoScheme's widths are no plan that could be read again
    if cell.kind != AUTOSCHEME:
        kept.write_text(plan.to_json())
    score = divergences(
        {cell.name: with_plan(job, plan)}, args.evaluation.resolve(), worker, seqlen=args.seqlen,
        limit=args.limit,
    )[cell.name]  # fmt: skip
    record = {
        **asdict(cell), "average_bits": plan.average_bits, "file_bytes": plan.file_bytes,
        "expected": plan.divergence, "planning_seconds": planning, **score,
        "widths": {name: [width.bits, width.group_size] for name, width in plan.widths.items()},
    }  # fmt: skip
    path(args.out, cell).write_text(json.dumps(record, indent=1) + "\n")
    print(f"{cell.name}: {plan.average_bits:.3f} bits, {score['divergence']:.4f}", flush=True)


def read_widths(file: Path) -> Widths:
    """What `autoscheme` wrote."""
    return {
        f"{float(average):g}": {name: Width(*width) for name, width in found["widths"].items()}
        for average, found in json.loads(file.read_text()).items()
    }


def path(folder: Path, cell: Cell) -> Path:
    """The file of a cell."""
    return folder / f"{cell.name}.json"


def table(args: argparse.Namespace) -> None:
    """Print every cell that is no uniform width, and what it is compared with."""
    found = [json.loads(file.read_text()) for file in sorted(args.out.glob("*-*-seed*.json"))]
    print(
        "| widths by | asked | bits a weight | seed | divergence | mixed | below mixed | below the log line |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for record in found:
        if record["kind"] == UNIFORM:
            continue
        line = [r for r in found if r["kind"] == UNIFORM and r["seed"] == record["seed"]]
        straight, logarithmic = between(record["average_bits"], line)
        measured = record["divergence"]
        # older records don't tell, as none had a choice
        kind = record["kind"] + suffix(record.get("group_sizes", ()), record.get("apart", False))
        print(
            f"| {kind} | {record['bits']:g} | {record['average_bits']:.3f} | {record['seed']} "
            f"| {measured:.4f} | {straight:.4f} | {100 * (1 - measured / straight):.0f} % "
            f"| {100 * (1 - measured / logarithmic):.0f} % |"
        )
    for bits in sorted({record["bits"] for record in found if record["kind"] == UNIFORM}):
        line = [r for r in found if r["kind"] == UNIFORM and r["bits"] == bits]
        each = ", ".join(f"{r['divergence']:.4f}" for r in line)
        print(f"uniform {bits:g}: {line[0]['average_bits']:.3f} bits a weight, {each}")
    timed = [r["planning_seconds"] / r["quantize_seconds"] for r in found if r["planning_seconds"] > 1]
    print(f"planning over quantizing: {', '.join(f'{100 * share:.0f} %' for share in timed)}")


def between(bits: float, line: list[dict[str, Any]]) -> tuple[float, float]:
    """What uniform widths on either side have at so many bits: on a straight line, on a logarithmic one."""
    points = sorted((r["average_bits"], r["divergence"]) for r in line)
    low = max(point for point in points if point[0] <= bits)
    high = min(point for point in points if point[0] >= bits)
    share = (bits - low[0]) / ((high[0] - low[0]) or 1.0)
    return (
        (1 - share) * low[1] + share * high[1],
        math.exp((1 - share) * math.log(low[1]) + share * math.log(high[1])),
    )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="measure what is missing")
    running.add_argument("model", type=Path)
    running.add_argument("--calibration", type=Path, required=True, help="text file")
    running.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    running.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4], help="uniform widths")
    running.add_argument("--avg-bits", type=float, nargs="*", default=[2.5, 3.0, 2.25, 3.5])
    running.add_argument("--widths", type=Path, help="of `autoscheme`")
    running.add_argument("--group-size", type=int, default=-1)
    running.add_argument("--group-sizes", type=int, nargs="+", default=[], help="that plans choose among")
    running.add_argument("--apart", action="store_true", help="fused layers may have several widths")
    running.add_argument("--samples", type=int, default=64, help="calibration windows")
    running.add_argument("--seqlen", type=int, default=256, help="tokens of a window")
    running.add_argument("--limit", type=int, default=64, help="scored windows")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    running.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "bits.log"))
    running.set_defaults(command=run)
    printing = commands.add_parser("table", help="print the results so far")
    printing.set_defaults(command=table)
    for command in (running, printing):
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
