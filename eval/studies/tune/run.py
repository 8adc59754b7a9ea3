r"""How much nearer to the unquantized model does tuning bring a checkpoint, and what does it cost?

    python -m eval.studies.tune.run MODEL --calibration FILE --evaluation FILE --work FOLDER \
        --out eval/studies/tune/results

Every cell of the grids and seeds is quantized by GPTQModel with `magr=True`, unless `--work` has its
checkpoint already, and then tuned by the command's own process. Both are scored by a fresh process
that never imports magr_gptq. Cells that have a file in `--out` are skipped, so that a run can be resumed.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.lib.fidelity import CONTEXT
from eval.studies.quality.run import GRIDS, Cell
from magr_gptq.app.processes import Child
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import diverge_all
from magr_gptq.app.tuning.job import TuneJob

METHOD = "default"


def measure(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize where needed, tune, and score both; the checkpoints are kept."""
    given, tuned = args.work / cell.name, args.work / f"{cell.name}-tuned"
    log = args.work / "log"
    seconds = None if given.is_dir() else quantize(cell, given, args, log)
    tuned.mkdir(exist_ok=True)
    asked = TuneJob(
        str(given), str(args.model.resolve()), str(tuned), str(args.work / f"{cell.name}.state"),
        str(args.calibration.resolve()), samples=args.rows, seqlen=args.seqlen, seed=cell.seed,
    )  # fmt: skip
    before = processor_seconds()
    with Child(["-m", "magr_gptq.app.tuning.child"], log) as child:
        found = child.ask(asdict(asked), lambda _: None)
    processor = processor_seconds() - before

    scores = diverge_all(
        str(args.model.resolve()), [str(given), str(tuned)], args.evaluation.resolve(), engine="gptqmodel",
        seqlen=args.seqlen, limit=args.limit, log=log,
    )  # fmt: skip
    return {
        **asdict(cell), "before": scores[0], "after": scores[1], "tuned": found,
        "tune_processor_seconds": round(processor, 1), "quantize_processor_seconds": seconds,
    }  # fmt: skip


def quantize(cell: Cell, out: Path, args: argparse.Namespace, log: Path) -> float:
    """The seconds of processor time that it took, start of its process included."""
    unfinished = out.with_name(f"{out.name}-unfinished")
    unfinished.mkdir(exist_ok=True)
    before = processor_seconds()
    job = Job(
        model=str(args.model.resolve()), out=str(unfinished), calibration=str(args.calibration.resolve()),
        bits=cell.bits, group_size=cell.group_size, samples=args.rows, seqlen=args.seqlen, seed=cell.seed,
    )  # fmt: skip
    with Worker(log) as worker:
        worker.quantize(job, listen=lambda _: None)
    unfinished.rename(out)
    return round(processor_seconds() - before, 1)


def processor_seconds() -> float:
    """Of all processes that have ended so far: other jobs on the machine don't count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure every cell that has no file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text file")
    parser.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rows", type=int, default=128, help="calibration windows")
    parser.add_argument("--seqlen", type=int, default=CONTEXT, help="tokens a window")
    parser.add_argument("--limit", type=int, default=256, help="scored windows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--grids", nargs="+", help="such as w2-g64; all four if left out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.work = args.work.absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for bits, group_size in GRIDS:
            cell = Cell(METHOD, bits, group_size, seed)
            file = args.out / f"{cell.name}.json"
            wanted = args.grids is None or any(f"{METHOD}-{grid}-seed" in cell.name for grid in args.grids)
            if wanted and not file.exists():
                start = time.perf_counter()
                result = measure(cell, args)
                file.write_text(json.dumps(result, indent=2) + "\n")
                took = time.perf_counter() - start
                parts = [f"{result[key]['divergence']:.4f}" for key in ("before", "after")]
                print(f"{cell.name}: {' -> '.join(parts)} ({took:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
