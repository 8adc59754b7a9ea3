"""What mirrored grids are worth: the default with them and without, on symmetric and asymmetric grids.

    python -m eval.studies.mirror.run run MODEL --calibration FILE --evaluation FILE
    python -m eval.studies.mirror.run table

GPTQModel quantizes and saves. The files' weights, as `magr_score.packed` reads them, are put into a float32
model, and that is compared with the original. Every cell is a JSON file in results/cells, and those that
have one are skipped. `--samples` of 256 tokens calibrate, `--limit` windows are scored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_score import packed
from magr_score.divergence import compare
from magr_score.windows import read_windows

CELLS = Path(__file__).parent / "results" / "cells"
GRIDS = ((2, 64), (3, 128), (4, 128))
METHODS: dict[str, Any] = {"default": {}, "positive": {"mirror": False}}
CONTEXT = 256


def main() -> None:
    """Run or show, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    run = commands.add_parser("run")
    run.add_argument("model", type=Path)
    run.add_argument("--calibration", type=Path, required=True)
    run.add_argument("--evaluation", type=Path, required=True)
    run.add_argument("--samples", type=int, default=16)
    run.add_argument("--limit", type=int, default=32)
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    run.add_argument("--symmetric", action="store_true", help="leave asymmetric grids out")
    args = parser.parse_args()
    if args.command == "table":
        print("\n".join(table()))
        return
    CELLS.mkdir(parents=True, exist_ok=True)
    with Worker(CELLS.parent / "quantize.log") as worker:
        measure_all(args, worker)


def measure_all(args: argparse.Namespace, worker: Worker) -> None:
    """Every cell that has no file, one seed after another."""
    request = {"text": str(args.evaluation), "seqlen": CONTEXT}
    windows = read_windows(str(args.model), request, args.limit).tokens
    original = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    kinds = (True,) if args.symmetric else (True, False)
    for seed, sym, (bits, group), method in product(args.seeds, kinds, GRIDS, METHODS):
        path = CELLS / f"{method}-w{bits}-g{group}-{'sym' if sym else 'asym'}-seed{seed}.json"
        if path.exists():
            continue
        with tempfile.TemporaryDirectory() as out:
            job = Job(
                model=str(args.model.resolve()), out=out, calibration=str(args.calibration.resolve()),
                bits=bits, group_size=group, sym=sym, samples=args.samples, seqlen=CONTEXT, seed=seed,
                magr=METHODS[method],
            )  # fmt: skip
            outcome = worker.quantize(job, lambda _: None)
            found = compare(original, read(out), windows)
        record = {"method": method, "bits": bits, "group_size": group, "sym": sym, "seed": seed, **found}
        record |= {"samples": args.samples, "windows": len(windows), "versions": outcome.versions}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{path.stem}: {found['divergence']:.4f}", flush=True)


def read(folder: str) -> Any:
    """The model's class in float32 with the weights of the files."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with torch.device("meta"):
        kind: Any = type(AutoModelForCausalLM.from_config(config))
    weights = packed.tensors(folder)
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32).eval()


def table() -> list[str]:
    """Markdown: divergence from the unquantized model, mean ± standard deviation over the seeds."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("*.json"))]
    lines = ["| grid | the default | `mirror=False` | ratio |", "|---|---|---|---|"]
    for sym, (bits, group) in product((True, False), GRIDS):
        found = {}
        for method in METHODS:
            at = {"method": method, "bits": bits, "group_size": group, "sym": sym}
            found[method] = [r["divergence"] for r in records if at.items() <= r.items()]
        if min(map(len, found.values())) < 2:
            continue
        means = {method: statistics.mean(values) for method, values in found.items()}
        shown = " | ".join(f"{means[m]:.4f} ± {statistics.stdev(values):.4f}" for m, values in found.items())
        heading = f"W{bits} g{group}, {'symmetric' if sym else 'asymmetric'}"
        lines.append(f"| {heading} | {shown} | {means['positive'] / means['default']:.2f} |")
    return lines


if __name__ == "__main__":
    main()
