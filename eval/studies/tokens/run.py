r"""How much calibration text one needs: KL divergence against tokens, of plain GPTQ and of the default.

    python -m eval.studies.tokens.run run MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/tokens/results/cells
    python -m eval.studies.tokens.run table --out eval/studies/tokens/results/cells
    python -m eval.studies.tokens.run figure --out eval/studies/tokens/results/cells --png FILE

`run` quantizes by GPTQModel, saves, and scores every saved checkpoint in a fresh process that never imports
magr_gptq. Every cell (method, bits, group size, tokens, seed) is a JSON file in `--out`; cells that have one
are skipped, so a run can be resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eval.lib.checkpoints import divergences
from eval.lib.fidelity import CONTEXT
from eval.studies.quality.run import heading
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker

TOKENS = (128, 256, 512, 1024, 4096, 32768)
GRIDS = ((3, -1), (2, -1), (3, 64), (2, 64))
METHODS: dict[str, dict[str, Any] | None] = {"gptq": None, "default": {}}


class Cell(NamedTuple):
    """One checkpoint to make and score."""

    method: str
    bits: int
    group_size: int
    tokens: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        grid = heading(self.bits, self.group_size).replace(" ", "-")
        return f"{self.method}-{grid}-{self.tokens}-seed{self.seed}"


def batches(seeds: list[int], methods: list[str], tokens: list[int]) -> Iterator[list[Cell]]:
    """All cells, those of one seed and as many tokens together; one seed after another."""
    for seed in seeds:
        for count in tokens:
            yield [Cell(method, *grid, count, seed) for grid in GRIDS for method in methods]


def job(cell: Cell, args: argparse.Namespace) -> Job:
    """What makes its checkpoint."""
    seqlen = min(CONTEXT, cell.tokens)
    return Job(
        model=str(args.model.resolve()), out="", calibration=str(args.calibration.resolve()),
        bits=cell.bits, group_size=cell.group_size, samples=cell.tokens // seqlen, seqlen=seqlen,
        seed=cell.seed, magr=METHODS[cell.method],
    )  # fmt: skip


def measure(cells: list[Cell], worker: Worker, args: argparse.Namespace) -> None:
    """Quantize, and score all of them in one process elsewhere."""
    jobs = {cell.name: job(cell, args) for cell in cells}
    found = divergences(jobs, args.evaluation.resolve(), worker, seqlen=CONTEXT, limit=args.limit)
    for cell in cells:
        measured = found[cell.name]
        record = {**measured, "scored_tokens": measured["tokens"], **cell._asdict()}
        (args.out / f"{cell.name}.json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"{cell.name}: {measured['divergence']:.4f}", flush=True)


def run(args: argparse.Namespace) -> None:
    """Measure every cell that has no result yet."""
    args.out.mkdir(parents=True, exist_ok=True)
    with Worker(args.log.resolve()) as worker:
        for cells in batches(args.seeds, args.methods, args.tokens):
            missing = [cell for cell in cells if not (args.out / f"{cell.name}.json").exists()]
            if missing:
                measure(missing, worker, args)


def title(bits: int, group_size: int) -> str:
    """Of a column and a panel."""
    return heading(bits, group_size).replace("w", "W")


def found_in(folder: Path) -> dict[tuple[str, int, int, int], list[float]]:
    """KL of all seeds, by method, bits, group size and tokens."""
    found: dict[tuple[str, int, int, int], list[float]] = {}
    for file in sorted(folder.glob("*-seed*.json")):
        cell = json.loads(file.read_text())
        key = (cell["method"], cell["bits"], cell["group_size"], cell["tokens"])
        found.setdefault(key, []).append(cell["divergence"])
    return found


def table(args: argparse.Namespace) -> None:
    """Print mean ± standard deviation, and the default's share of plain GPTQ's."""
    found = found_in(args.out)
    print("| KL | tokens | " + " | ".join(title(*grid) for grid in GRIDS) + " |")
    print("|---|---|" + "---|" * len(GRIDS))
    for tokens in TOKENS:
        for method in METHODS:
            entries = [entry(found, method, grid, tokens) for grid in GRIDS]
            print(f"| {method} | {tokens:,} | " + " | ".join(entries) + " |")


def entry(found: dict[Any, list[float]], method: str, grid: tuple[int, int], tokens: int) -> str:
    """A cell of the table."""
    values = found.get((method, *grid, tokens))
    if not values:
        return ""
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    plain = found.get(("gptq", *grid, tokens))
    share = f" ({mean / statistics.mean(plain):.2f})" if plain and method != "gptq" else ""
    return f"{mean:.4f}{spread}{share}"


def figure(args: argparse.Namespace) -> None:
    """Draw KL against tokens, a panel for each grid."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter

    found = found_in(args.out)
    measured = sorted({tokens for *_, tokens in found})
    drawing, panels = plt.subplots(1, len(GRIDS), figsize=(12, 3.2), layout="constrained")
    for panel, (bits, group_size) in zip(panels, GRIDS, strict=True):
        for method, color in (("gptq", "tab:gray"), ("default", "tab:blue")):
            cells = {n: found[key] for n in measured if (key := (method, bits, group_size, n)) in found}
            panel.plot(
                list(cells), list(map(statistics.mean, cells.values())), "o-", color=color, label=method
            )
        panel.set(xscale="log", yscale="log", xlabel="calibration tokens")
        panel.set_title(title(bits, group_size))
        panel.set_xticks(measured, labels=[f"{tokens:,}" for tokens in measured], rotation=60)
        panel.yaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1]))
        panel.yaxis.set_major_formatter("{x:g}")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("KL from the unquantized model")
    panels[0].legend(labels=["plain GPTQ", "default"], frameon=False)
    drawing.savefig(args.png, dpi=110)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="measure what is missing")
    running.add_argument("model", type=Path)
    running.add_argument("--calibration", type=Path, required=True, help="text file")
    running.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    running.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    running.add_argument("--tokens", type=int, nargs="+", choices=TOKENS, default=list(TOKENS))
    running.add_argument("--limit", type=int, default=64, help="scored windows of 256 tokens")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    running.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "tokens.log"))
    running.set_defaults(command=run)
    commands.add_parser("table", help="print the results so far").set_defaults(command=table)
    drawing = commands.add_parser("figure", help="draw the results so far")
    drawing.add_argument("--png", type=Path, required=True)
    drawing.set_defaults(command=figure)
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
