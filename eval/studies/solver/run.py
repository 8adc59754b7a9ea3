"""Time, memory and quality of `magr_gptq.reduce`, the paper's algorithm and Brevitas' MagR, in one run.

    python -m eval.studies.solver.run run --out eval/studies/solver/results/cpu.json
    python -m eval.studies.solver.run run --device cuda --suite squares llama2-7b --out FILE
    python -m eval.studies.solver.run table --out eval/studies/solver/results/cpu.json

`run` measures every layer of the suites (or of `--shapes`, rows x columns) that has no result in
`--out` yet, so it can be resumed on the same machine with the same settings; it draws seconds against
width beside the JSON. Layers are made up, with a power-law spectrum, or the demo model's own. Repeats
of the methods alternate. On the CPU, only some of a descent's 150 steps are timed, and scaled, where all
would take minutes ("timed_steps" in the results, ~ in the table). Quality is that of 256 rows after all
steps. `table` prints what was measured, with ratios.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from eval.studies.solver.layers import SUITES, Layer, make, of_shape
from eval.studies.solver.measure import (
    machine,
    peaks,
    product_rate,
    quality,
    seconds_of,
    spread,
    timed_steps,
    times,
)
from eval.studies.solver.methods import (
    ALPHA,
    BREVITAS,
    OURS,
    PAPER,
    STEPS,
    Problem,
    largest_eigenvalue,
    methods,
)
from eval.studies.solver.report import draw, ratios, table

DEFAULT_SUITES = {"cpu": ["squares", "spectra", "demo"], "cuda": ["squares", "llama2-7b"]}


def problem_of(layer: Layer, args: argparse.Namespace) -> Problem:
    """The layer on the device."""
    weight, hessian = (tensor.to(args.device) for tensor in make(layer, args.seed))
    return Problem(weight, hessian, args.bits, largest_eigenvalue(hessian))


def measure(layer: Layer, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one layer."""
    found, problem = methods(), problem_of(layer, args)
    for method in found.values():
        method.solve(problem.of_rows(slice(8)), 1)  # loads kernels and libraries
    seconds, solved = times(problem, found, args.repeats, args.device)
    return {
        "rows": len(problem.weight),
        "columns": len(problem.hessian),
        "steps": STEPS,
        "timed_steps": timed_steps(problem),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "times_faster": {
            baseline: {name: spread(values) for name, values in ratios(seconds, baseline).items()}
            for baseline in (PAPER, BREVITAS)
        },
        "peak_bytes": peaks(problem, found, args.device),
        **quality(problem, found, solved),
    }


def in_turn(layers: list[Layer], args: argparse.Namespace) -> float:
    """Seconds of `reduce` with the defaults on every layer of a model; equal shapes share their data."""
    solve = methods()[OURS].solve
    problems = {layer: problem_of(layer, args) for layer in layers}

    def all_layers() -> None:
        for layer, problem in problems.items():
            for _ in range(layer.count):
                solve(problem, 0)

    return seconds_of(all_layers, args.device)


def load(args: argparse.Namespace) -> dict[str, Any]:
    """The results so far, or empty ones; refuses those of another machine or other settings."""
    settings = {name: getattr(args, name) for name in ("bits", "repeats", "seed", "tf32")}
    new = {"machine": machine(args.device), "settings": {**settings, "alpha": ALPHA}}
    if not args.out.exists():
        return {**new, "product_flops": product_rate(args.device), "layers": {}, "in_turn": {}}
    record = json.loads(args.out.read_text())
    for key, value in new.items():
        if record[key] != value:
            raise SystemExit(f"{args.out} was made with {key} {record[key]}, not {value}: give another --out")
    return record


def save(record: dict[str, Any], out: Path) -> None:
    """Write JSON and figure."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    draw(record, out.with_suffix(".png"))


def run(args: argparse.Namespace) -> None:
    """Measure what is missing."""
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    record = load(args)
    suites = [] if args.shapes else args.suite or DEFAULT_SUITES[args.device]
    layers = [of_shape(*map(int, shape.split("x"))) for shape in args.shapes]
    layers += [layer for suite in suites for layer in SUITES[suite]]
    for layer in layers:
        if layer.name not in record["layers"]:
            print(layer.name, flush=True)
            record["layers"][layer.name] = measure(layer, args)
            save(record, args.out)
    for suite in suites:
        # on a CPU a whole model would take an hour; `table` adds up its shapes there
        if args.device == "cuda" and any(layer.count > 1 for layer in SUITES[suite]):
            record["in_turn"].setdefault(suite, in_turn(SUITES[suite], args))
            save(record, args.out)
    print(table(record))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="measure what is missing")
    running.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    running.add_argument("--suite", nargs="+", choices=SUITES, help="default: squares and a few more")
    running.add_argument("--shapes", nargs="+", default=[], help="for example 1024x1024 instead of suites")
    running.add_argument("--bits", type=int, default=3)
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--tf32", action="store_true", help="let all methods' products on CUDA use TF32")
    running.set_defaults(command=run)
    printing = commands.add_parser("table", help="print the results so far")
    printing.set_defaults(command=lambda args: print(table(json.loads(args.out.read_text()))))
    for command in (running, printing):
        command.add_argument("--out", type=Path, required=True, help="JSON of the results")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
