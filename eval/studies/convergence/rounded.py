r"""What more iterations of the solver bring once the layer is rounded: its loss over that of 8 iterations.

    python -m eval.studies.convergence.rounded MODEL --calibration FILE --bits 4 8

Layers are rounded in memory with all of the default (`eval/lib/simulate.py`), on the Hessian that they were
reduced by. A loss is ‖Ŵ − Q‖²_H / ‖Ŵ‖²_H.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eval.lib.simulate import LayerQuantizer, Setting
from eval.studies.convergence.run import capture

ITERATIONS = (2, 4, 8, 16, 32, 128)


def main() -> None:
    """Parse the command line, and print a line a bit width and number of iterations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True, help="text")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rows", type=int, default=16, help="calibration rows of 256 tokens")
    args = parser.parse_args()
    layers = capture(args.model, args.calibration, args.rows, args.layers)
    for bits in args.bits:
        losses: dict[int, list[float]] = {}
        for count in ITERATIONS:
            quantizer = LayerQuantizer(Setting("", "magr", bits, magr={"iterations": count}))
            for weight, hessian in layers:
                quantizer(weight.clone(), hessian)
            losses[count] = [measures.loss for measures in quantizer.measures]
        for count, found in losses.items():
            ratios = [loss / at_eight for loss, at_eight in zip(found, losses[8], strict=True)]
            print(f"W{bits} after {count}: {', '.join(f'{ratio:.4f}' for ratio in ratios)}", flush=True)


if __name__ == "__main__":
    main()
