"""How many rows would keep plain GPTQ, were it a candidate beside the default's strengths?

    python -m eval.studies.choice.plain_gptq MODEL --calibration TEXT --bits 3 --group-size 64

Through GPTQModel, as `magr-gptq quantize` leads it. Prints a row of a Markdown table: the share's mean over
layers, and the largest of a layer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from magr_gptq.app.quantizing.child import perform
from magr_gptq.app.quantizing.job import Job
from magr_gptq.config import Candidate, MagRConfig, Plan


def main() -> None:
    """Quantize once, with plain GPTQ among the candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, default=-1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    args = parser.parse_args()
    resolve = MagRConfig.resolve

    def beside_plain(*given: Any, **named: Any) -> Plan:
        plan = resolve(*given, **named)
        return replace(plan, candidates=(Candidate.PLAIN, *plan.candidates))

    MagRConfig.resolve = beside_plain  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=args.model, out=str(Path(folder, "out")), calibration=args.calibration, bits=args.bits,
            group_size=args.group_size, samples=args.samples, seqlen=args.seqlen, seed=0, magr={},
        )  # fmt: skip
        layers = perform(asdict(job), lambda *_, **__: None)["layers"]
    shares = [layer["plain_share"] for layer in layers]
    grid = f"W{args.bits}" + (f" g{args.group_size}" if args.group_size > 0 else "")
    print(f"| {grid} | {statistics.fmean(shares):.2%} | {max(shares):.1%} |")


if __name__ == "__main__":
    main()
