r"""Perplexity and divergence of plain GPTQ, its peers, the paper's presets and ours, by the real GPTQModel.

    python -m eval.studies.quality.run run MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/quality/results/cells
    python -m eval.studies.quality.run table --out eval/studies/quality/results/cells
    python -m eval.studies.quality.run seconds --out eval/studies/quality/results/seconds

The methods are those of settings.json. `run` quantizes, saves, and scores every saved checkpoint in a fresh
process that never imports magr_gptq. Every cell (method, bits, group size, calibration seed) is a JSON file
in `--out`; cells that have one are skipped, so a run can be resumed. `--also` scores another text, too.
`table` prints mean ± standard deviation over the seeds, and the share of plain GPTQ's gap to the unquantized
model that is closed, of the perplexity or of the divergence (`--divergence`), or the same of the other text
(`--also`); `seconds`, of cells that one run made, the time in the toolkit's quantize() as a multiple of plain
GPTQ's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.lib.fidelity import ALSO, CONTEXT, DIVERGENCE_ALSO
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import diverge, score

GRIDS = ((3, -1), (2, -1), (3, 64), (2, 64))
# by name, fields of `Job`
METHODS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("settings.json").read_text())
UNQUANTIZED = "unquantized"


@dataclass(frozen=True)
class Cell:
    """One checkpoint to make and score."""

    method: str
    bits: int
    group_size: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        return f"{self.method}-{heading(self.bits, self.group_size).replace(' ', '-')}-seed{self.seed}"


def heading(bits: int, group_size: int) -> str:
    """A column of the table."""
    return f"w{bits}" if group_size == -1 else f"w{bits} g{group_size}"


def cells(seeds: list[int], methods: list[str]) -> Iterator[Cell]:
    """All of them, one seed after another, so that an unfinished run shows a whole table."""
    for seed in seeds:
        for bits, group_size in GRIDS:
            for method in methods:
                yield Cell(method, bits, group_size, seed)


def measure(cell: Cell, worker: Worker, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize, save, score elsewhere; the checkpoint is not kept."""
    folder = tempfile.mkdtemp(prefix="quality-")
    try:
        job = Job(
            model=str(args.model.resolve()), out=folder, calibration=str(args.calibration.resolve()),
            bits=cell.bits, group_size=cell.group_size, samples=args.rows, seqlen=CONTEXT, seed=cell.seed,
            **METHODS[cell.method],
        )  # fmt: skip
        outcome = worker.quantize(job, listen=lambda _: None)
        found = scored(folder, "gptqmodel", worker.log, args)
    finally:
        shutil.rmtree(folder)
    return {**asdict(cell), **found, "quantize_seconds": outcome.seconds, "magr": outcome.summary}


def scored(folder: str, engine: str, log: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity and divergence of a checkpoint, on the other text, too, and how measured."""

    def on(text: Path) -> dict[str, Any]:
        return diverge(
            str(args.model.resolve()), folder, text.resolve(), engine=engine, seqlen=CONTEXT,
            limit=args.limit, log=log,
        )  # fmt: skip

    found = on(args.evaluation)
    if not args.also:
        return found
    other = on(args.also)
    return {**found, ALSO: other["perplexity"], DIVERGENCE_ALSO: other["divergence"]}


def unquantized(log: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The perplexity of the model itself, on the other text, too, if there is one, and how measured."""

    def on(text: Path) -> dict[str, Any]:
        model = str(args.model.resolve())
        return score(model, text.resolve(), engine="transformers", seqlen=CONTEXT, limit=args.limit, log=log)

    found = on(args.evaluation)
    return {**found, ALSO: on(args.also)["perplexity"]} if args.also else found


def run(args: argparse.Namespace) -> None:
    """Measure every cell that has no result yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    with Worker(args.log.resolve()) as worker:
        if not path(args.out, UNQUANTIZED).exists():
            write(args.out, UNQUANTIZED, unquantized(worker.log, args))
        for cell in cells(args.seeds, args.methods):
            # looked up now, not before: another run may share the folder
            if not path(args.out, cell.name).exists():
                write(args.out, cell.name, measure(cell, worker, args))


def path(folder: Path, name: str) -> Path:
    """The file of a cell."""
    return folder / f"{name}.json"


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Save and say so."""
    path(folder, name).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}: {result['perplexity']:.3f}", flush=True)


def table(args: argparse.Namespace) -> None:
    """Print what was measured so far."""
    quantity, digits = ("divergence", 4) if args.divergence else ("perplexity", 2)
    key = quantity if not args.also else DIVERGENCE_ALSO if args.divergence else ALSO
    least = 0.0 if args.divergence else json.loads(path(args.out, UNQUANTIZED).read_text())[key]
    found = [json.loads(file.read_text()) for file in sorted(args.out.glob("*-seed*.json"))]
    print(f"unquantized {least:.2f}\n")
    print(f"| {quantity} | " + " | ".join(heading(*grid).upper() for grid in GRIDS) + " |")
    print("|---|" + "---|" * len(GRIDS))
    for method in in_order(found):
        columns = [values(found, method, grid, key) for grid in GRIDS]
        plain = [values(found, "gptq", grid, key) for grid in GRIDS]
        entries = [entry(c, p, least, digits) for c, p in zip(columns, plain, strict=True)]
        print(f"| {method} | " + " | ".join(entries) + " |")


def in_order(found: list[dict[str, Any]]) -> list[str]:
    """The methods that were measured: those of settings.json as they stand there, then others."""
    measured = dict.fromkeys(result["method"] for result in found)
    return [
        *(name for name in METHODS if name in measured),
        *(name for name in measured if name not in METHODS),
    ]


def values(found: list[dict[str, Any]], method: str, grid: tuple[int, int], key: str) -> list[float]:
    """A cell's numbers over the seeds."""
    cells = [r for r in found if r["method"] == method and (r["bits"], r["group_size"]) == grid]
    return [r[key] for r in cells if key in r]


def entry(measured: list[float], plain: list[float], least: float, digits: int) -> str:
    """mean ± standard deviation, and the share of plain GPTQ's gap that is closed."""
    if not measured:
        return ""
    mean = statistics.mean(measured)
    spread = f" ± {statistics.stdev(measured):.{digits}f}" if len(measured) > 1 else ""
    if not plain or measured == plain:
        return f"{mean:.{digits}f}{spread}"
    gap = statistics.mean(plain) - least
    return f"{mean:.{digits}f}{spread}, {100 * (statistics.mean(plain) - mean) / gap:.0f} %"


def seconds(args: argparse.Namespace) -> None:
    """Print the least and the most times that each method took as long as plain GPTQ with the same seed."""
    found = [json.loads(file.read_text()) for file in sorted(args.out.glob("*-seed*.json"))]
    taken = {(r["method"], r["bits"], r["group_size"], r["seed"]): r["quantize_seconds"] for r in found}
    print("| times plain GPTQ | " + " | ".join(heading(*grid).upper() for grid in GRIDS) + " |")
    print("|---|" + "---|" * len(GRIDS))
    for method in dict.fromkeys(result["method"] for result in found):
        entries = []
        for grid in GRIDS:
            seeds = [seed for seed in args.seeds if (method, *grid, seed) in taken]
            times = [taken[(method, *grid, seed)] / taken[("gptq", *grid, seed)] for seed in seeds]
            entries.append(f"{min(times):.2f}–{max(times):.2f}" if times else "")
        print(f"| {method} | " + " | ".join(entries) + " |")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="measure what is missing")
    running.add_argument("model", type=Path)
    running.add_argument("--calibration", type=Path, required=True, help="text file")
    running.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    running.add_argument("--also", type=Path, help="another text to score, of another domain")
    running.add_argument("--rows", type=int, default=128, help="calibration rows of 256 tokens")
    running.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    running.add_argument("--limit", type=int, default=256, help="scored windows of 256 tokens")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "quality.log"))
    running.set_defaults(command=run)
    printing = commands.add_parser("table", help="print the results so far")
    printing.add_argument("--also", action="store_true", help="on the other text")
    printing.add_argument("--divergence", action="store_true", help="from the unquantized model")
    printing.set_defaults(command=table)
    timing = commands.add_parser("seconds", help="print how long quantizing took")
    timing.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    timing.set_defaults(command=seconds)
    for command in (running, printing, timing):
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
