r"""How fast ADMM, accelerated and plain proximal descent close the objective's gap on real layers.

    python -m eval.studies.convergence.run MODEL --calibration FILE \
        --out eval/studies/convergence/results/convergence.json

Takes Hessians and 64 rows of weights from layers spread over the model, poses the default penalty
at each of `--bits`, and finds the minimum in float64 by restarted FISTA: up to 20,000 steps, fewer
once the duality gap falls below 1/100 of what was gained; `--verify N` compares N of the minima with
those of all the steps. Reports the share of the gap between start and minimum that is left after so
many iterations, and draws it next to the JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.lib.baselines import (
    Penalty,
    accelerated,
    derived_penalty,
    inverse_factor,
    objective,
    proximal_descent,
)
from eval.lib.fidelity import CONTEXT
from eval.lib.simulate import calibrate_and_quantize
from magr_gptq import MagRConfig, reduce
from magr_gptq.app.text import load_text, random_windows
from magr_gptq.config.settings import STRENGTHS

matplotlib.use("Agg")

from matplotlib import pyplot

ITERATIONS = (1, 2, 4, 8, 12, 16, 32)
ROWS = 64
METHODS = ("ADMM", "accelerated", "plain descent")
REFERENCE_STEPS = 20_000
TOLERANCE = 1e-2
# the duality gap is far from tight: minima found so agree with all the steps to this share of the gain
AGREEMENT = 1e-5
# per cent of the gap that may be left after so many ADMM iterations: mean, worst
BARS = {8: (1.5, None), 16: (0.5, 4.0)}


def capture(model_folder: Path, calibration: str, rows: int, layers: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and Hessians of so many layers, spread evenly over the unquantized model."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(model_folder)(load_text(calibration))["input_ids"]
    found: list[tuple[Tensor, Tensor]] = []

    def keep(weight: Tensor, hessian: Tensor) -> Tensor:
        # rows are independent: a sample of them costs less and says the same
        found.append((weight[:: max(1, len(weight) // ROWS)], hessian))
        return weight

    calibrate_and_quantize(model, torch.tensor(random_windows(tokens, rows, CONTEXT, seed=0)), keep)
    if layers > len(found):
        raise SystemExit(f"the model has {len(found)} linear layers, fewer than {layers}")
    return [found[i * len(found) // layers] for i in range(layers)]


def curves(weight: Tensor, hessian: Tensor, bits: int, verify: bool) -> dict[str, list[float]]:
    """Per method, the per cent of the layer's gap that is left after each of ITERATIONS."""
    w, h = weight.double(), hessian.double()
    penalty = derived_penalty(inverse_factor(h), bits, strength=STRENGTHS[0])

    def total(rows: Tensor) -> float:
        return float(objective(rows, w, h, penalty).sum())

    start, least = total(w), total(accelerated(w, h, penalty, REFERENCE_STEPS, TOLERANCE))
    if verify:
        _verify(start, least, total(accelerated(w, h, penalty, REFERENCE_STEPS)))
    solvers = solvers_of(weight, hessian, penalty, bits)
    return {
        name: [100 * (total(solve(count)) - least) / (start - least) for count in ITERATIONS]
        for name, solve in solvers.items()
    }


def solvers_of(
    weight: Tensor, hessian: Tensor, penalty: Penalty, bits: int
) -> dict[str, Callable[[int], Tensor]]:
    """Per method, the weight after so many iterations; ADMM is the package's, in float32."""
    w, h = weight.double(), hessian.double()
    return {
        "ADMM": lambda n: reduce(weight, hessian, bits=bits, config=MagRConfig(iterations=n)).weight.double(),
        "accelerated": lambda n: accelerated(w, h, penalty, n),
        "plain descent": lambda n: proximal_descent(w, h, penalty, n),
    }


def _verify(start: float, least: float, all_steps: float) -> None:
    difference = (least - all_steps) / (start - all_steps)
    print(f"  minimum by duality gap against {REFERENCE_STEPS} steps: {difference:+.1e} of the gain")
    if abs(difference) > AGREEMENT:
        raise SystemExit(f"the two minima differ by more than {AGREEMENT} of the gain: lower TOLERANCE")


def statistics(layers: list[dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """Per method, mean and worst over the layers."""
    stacked = {name: torch.tensor([layer[name] for layer in layers]) for name in METHODS}
    return {
        name: {"mean": values.mean(0).tolist(), "worst": values.amax(0).tolist()}
        for name, values in stacked.items()
    }


def show(results: dict[str, dict[str, dict[str, list[float]]]]) -> bool:
    """Print a table; whether ADMM keeps to its bars."""
    kept = True
    print(f"per cent of the gap left, mean (worst); after{'':19}" + "".join(f"{n:>16}" for n in ITERATIONS))
    for bits, methods in results.items():
        for name, s in methods.items():
            cells = [f"{mean:.2f} ({worst:.2f})" for mean, worst in zip(s["mean"], s["worst"], strict=True)]
            print(f"W{bits} {name:61}" + "".join(f"{cell:>16}" for cell in cells))
        for count, (mean_bar, worst_bar) in BARS.items():
            at = ITERATIONS.index(count)
            kept &= methods["ADMM"]["mean"][at] <= mean_bar
            kept &= worst_bar is None or methods["ADMM"]["worst"][at] <= worst_bar
    print(f"ADMM keeps to its bars {BARS}: {kept}")
    return kept


def draw(results: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Gap against iterations, a panel for each bit width: mean as a line, worst layer dashed."""
    figure, axes = pyplot.subplots(
        1, len(results), figsize=(4 + 3 * (len(results) - 1), 3.6), sharey=True, squeeze=False
    )
    for axis, (bits, methods) in zip(axes[0], results.items(), strict=True):
        for name, s in methods.items():
            (line,) = axis.loglog(ITERATIONS, s["mean"], marker="o", markersize=3, label=name)
            axis.loglog(ITERATIONS, s["worst"], linestyle="--", linewidth=0.8, color=line.get_color())
        axis.set_title(f"W{bits} per channel")
        axis.set_xlabel("iterations")
        axis.set_xticks(ITERATIONS, labels=map(str, ITERATIONS))
        axis.minorticks_off()
        # what ADMM leaves after 32 iterations drowns in float32's rounding
        axis.set_ylim(1e-3, 150)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("gap left, % (dashed: worst layer)")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def save(results: dict[str, dict[str, dict[str, list[float]]]], layers: int, out: Path) -> None:
    """Write the JSON and the figure of the bit widths so far."""
    record = {"iterations": ITERATIONS, "layers": layers, "rows": ROWS, "gap_left_per_cent": results}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    draw(results, out.with_suffix(".png"))


def main() -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True, help="text")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the figure lies next to it as .png")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--rows", type=int, default=64, help="calibration rows of 256 tokens")
    parser.add_argument("--verify", type=int, default=0, help="check so many minima by all the steps")
    args = parser.parse_args()
    layers = capture(args.model, args.calibration, args.rows, args.layers)
    results = {}
    for bits in args.bits:
        found = []
        for index, (weight, hessian) in enumerate(layers):
            found.append(curves(weight, hessian, bits, verify=bits == args.bits[0] and index < args.verify))
            print(f"W{bits} layer {index + 1} of {len(layers)}", flush=True)
        results[str(bits)] = statistics(found)
        save(results, len(layers), args.out)
    show(results)


if __name__ == "__main__":
    main()
