r"""Plain GPTQ, the paper's preset and the default on pretrained models that people use.

    python -m eval.studies.real.run run smollm2 --calibration wikitext-2/valid.txt \
        --evaluation wikitext-2/test.txt --out eval/studies/real/results/smollm2
    python -m eval.studies.real.run table --out eval/studies/real/results/smollm2

`run` fetches the model into `--models` unless it is there, quantizes it by GPTQModel, saves, and scores every
saved checkpoint in a process that never imports magr_gptq. Every cell (method, bits, group size, calibration
windows, seed) is a JSON file in `--out`; cells that have one are skipped, so a run can be resumed. A
checkpoint stays in `--work` until its cell is written, so that the same command scores it where a run ended
before that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eval.lib.auto_round import RECIPES
from eval.lib.checkpoints import divergences_in
from eval.studies.quality.run import UNQUANTIZED, heading, path
from eval.studies.real.fetch import SOURCES, fetch
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import score

METHODS: dict[str, dict[str, Any] | None] = {"gptq": None, "paper": {"preset": "paper"}, "default": {}}
# those of `auto_round_cells`, too
COLUMNS = (*METHODS, *RECIPES)


class Cell(NamedTuple):
    """One checkpoint to make and score; samples: calibration windows."""

    method: str
    bits: int
    group_size: int
    samples: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        grid = heading(self.bits, self.group_size).replace(" ", "-")
        return f"{self.method}-{grid}-{self.samples}-seed{self.seed}"


def batches(args: argparse.Namespace) -> Iterator[list[Cell]]:
    """All cells, those that differ in the method alone together; one seed after another."""
    for seed, group_size, bits in itertools.product(args.seeds, args.group_sizes, args.bits):
        yield [Cell(method, bits, group_size, args.samples, seed) for method in args.methods]


def run(args: argparse.Namespace) -> None:
    """Measure every cell that has no result yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.models / args.model
    if not model.exists():
        fetch(SOURCES[args.model], model)
    with Worker(args.log.resolve()) as worker:
        if not path(args.out, UNQUANTIZED).exists():
            whole = score(
                str(model.resolve()), args.evaluation.resolve(), engine="transformers", seqlen=args.seqlen,
                limit=args.limit, log=worker.log,
            )  # fmt: skip
            write(args.out, UNQUANTIZED, whole)
        for cells in batches(args):
            missing = [cell for cell in cells if not path(args.out, cell.name).exists()]
            if missing:
                measure(missing, model, worker, args)


def measure(cells: list[Cell], model: Path, worker: Worker, args: argparse.Namespace) -> None:
    """Quantize, and score all of them in one process elsewhere."""
    jobs = {
        cell.name: Job(
            model=str(model.resolve()), out="", calibration=str(args.calibration.resolve()),
            bits=cell.bits, group_size=cell.group_size, samples=cell.samples, seqlen=args.seqlen,
            seed=cell.seed, magr=METHODS[cell.method],
        )
        for cell in cells
    }  # fmt: skip
    found = divergences_in(
        place(args), jobs, args.evaluation.resolve(), worker, seqlen=args.seqlen, limit=args.limit
    )
    for cell in cells:
        write(args.out, cell.name, {**cell._asdict(), **found[cell.name]})
        shutil.rmtree(place(args) / cell.name)


def place(args: argparse.Namespace) -> Path:
    """Where the model's checkpoints wait to be scored, by their cells' names."""
    return Path(args.work).resolve() / args.model


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Save and say so."""
    path(folder, name).write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}: {result['perplexity']:.2f}, {result.get('divergence', 0):.4f}", flush=True)


def table(args: argparse.Namespace) -> None:
    """Print KL and perplexity, means over the seeds, and every method's share of plain GPTQ's KL."""
    found: dict[tuple[int, int, int], dict[str, list[dict[str, Any]]]] = {}
    for file in sorted(args.out.glob("*-seed*.json")):
        cell = json.loads(file.read_text())
        grid = (-cell["bits"], cell["group_size"], cell["samples"])
        found.setdefault(grid, {}).setdefault(cell["method"], []).append(cell)
    whole = json.loads(path(args.out, UNQUANTIZED).read_text())
    print(f"unquantized: perplexity {whole['perplexity']:.2f}\n")
    columns = [method for method in COLUMNS if any(method in cells for cells in found.values())]
    print("| grid | windows | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for (bits, group_size, samples), cells in sorted(found.items()):
        entries = [entry(cells.get(method, []), cells.get("gptq", [])) for method in columns]
        print(f"| {heading(-bits, group_size).replace('w', 'W')} | {samples} | " + " | ".join(entries) + " |")


def entry(cells: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """Divergence ± its standard deviation (the share of plain GPTQ's), and perplexity."""
    if not cells:
        return ""
    values = [cell["divergence"] for cell in cells]
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    of_plain = statistics.mean(cell["divergence"] for cell in plain) if plain else mean
    share = f" ({mean / of_plain:.2f})" if mean != of_plain else ""
    return f"{mean:.4f}{spread}{share}; {statistics.mean(cell['perplexity'] for cell in cells):.2f}"


def add_arguments(running: argparse.ArgumentParser, methods: list[str]) -> None:
    """Those of a run: which model, which cells, how they are made and scored."""
    running.add_argument("model", choices=SOURCES)
    running.add_argument("--calibration", type=Path, required=True, help="text file")
    running.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    running.add_argument("--models", type=Path, default=Path("runs/real"), help="folder of fetched models")
    running.add_argument("--methods", nargs="+", choices=methods, default=methods)
    running.add_argument("--bits", type=int, nargs="+", default=[3, 2, 4])
    running.add_argument("--group-sizes", type=int, nargs="+", default=[64, -1])
    running.add_argument("--samples", type=int, default=16, help="calibration windows")
    running.add_argument("--seqlen", type=int, default=512, help="tokens of a window")
    running.add_argument("--limit", type=int, default=40, help="scored windows")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    running.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "real.log"))
    running.add_argument(
        "--work", type=Path, default=Path("runs/real-unscored"), help="folder of unscored checkpoints"
    )
    running.add_argument("--out", type=Path, required=True, help="folder of the results")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="measure what is missing")
    add_arguments(running, methods=list(METHODS))
    running.set_defaults(command=run)
    printing = commands.add_parser("table", help="print the results so far")
    printing.set_defaults(command=table)
    printing.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
