"""Seconds of `magr_gptq.reduce` against the paper's algorithm, on one layer, on the CPU, in one run.

    python eval/bench_reduce.py --out eval/results/bench-reduce.json

The paper's algorithm is `baselines.paper_magr`: 150 steps, each with a sort. The layer is made up:
weights with a few outliers, a Hessian whose spectrum falls like 1/i with a few directions above it,
as real layers have. Repeats alternate, so that both meet the same disturbance.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baselines import Penalty, largest_eigenvalue, objective, paper_magr
from torch import Tensor

from magr_gptq import MagRConfig, reduce

ALPHA = 1e-3
STEPS = 150


def machine() -> dict[str, object]:
    """The processor, its cores and the versions that a time depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def layer(size: int, seed: int, dominant: int = 4) -> tuple[Tensor, Tensor]:
    """A weight [size, size] and the Hessian of inputs with a 1/i spectrum and dominant directions."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, size, generator=generator) / size**0.5
    outliers = torch.rand(size, size, generator=generator) < 1e-3
    weight[outliers] *= 5
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    spectrum = 1 / torch.arange(1, size + 1)
    spectrum[:dominant] *= 30
    return weight, (basis * spectrum) @ basis.T


def seconds_of(function: Callable[[], object]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summary(times: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def scaled_objective(rows: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """The paper's objective, λmax = 1, summed over the rows in float64."""
    rows, weight, hessian = rows.double(), weight.double(), hessian.double()
    scaled = hessian / largest_eigenvalue(hessian)
    return float(objective(rows, weight, scaled, Penalty(ALPHA, squared=False)).sum())


def measure(size: int, bits: int, repeats: int, seed: int) -> dict[str, Any]:
    """Both algorithms on one layer: seconds, their ratio, the paper's objective of both results."""
    weight, hessian = layer(size, seed)
    ours = MagRConfig(alpha=ALPHA)
    contenders: dict[str, Callable[[], object]] = {
        "paper": lambda: paper_magr(weight, hessian, ALPHA, STEPS),
        "reduce, the paper's penalty": lambda: reduce(weight, hessian, bits=bits, config=ours),
        "reduce, default": lambda: reduce(weight, hessian, bits=bits),
    }
    contenders["reduce, default"]()  # the first call loads kernels
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(seconds_of(function))
    seconds = {name: summary(values) for name, values in times.items()}
    found = reduce(weight, hessian, bits=bits, config=ours)
    return {
        "size": size, "bits": bits, "repeats": repeats, "seed": seed, "alpha": ALPHA, "paper_steps": STEPS,
        "iterations": found.iterations,
        "seconds": seconds,
        "times_faster": {name: seconds["paper"]["median"] / s["median"] for name, s in seconds.items()},
        "objective": {
            "start": scaled_objective(weight, weight, hessian),
            "paper": scaled_objective(paper_magr(weight, hessian, ALPHA, STEPS), weight, hessian),
            "reduce, the paper's penalty": scaled_objective(found.weight, weight, hessian),
        },
        "machine": machine(),
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    print(f"{'':30}{'seconds':>9}{'range':>18}{'faster':>9}{'objective':>12}")
    for name, s in result["seconds"].items():
        spread = f"{s['least']:.3f} to {s['most']:.3f}"
        faster = f"{result['times_faster'][name]:.1f}x"
        value = f"{result['objective'][name]:.5f}" if name in result["objective"] else ""
        print(f"{name:30}{s['median']:9.3f}{spread:>18}{faster:>9}{value:>12}")
    print(f"objective at the start {result['objective']['start']:.5f}")


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = measure(args.size, args.bits, args.repeats, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
