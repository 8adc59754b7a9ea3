"""Work, memory and time of MagR on paper, from the shapes of published models: the tables of README.md.

    python -m eval.studies.scaling.run
    python -m eval.studies.scaling.run --measured eval/studies/solver/results/cpu.json

All of it is arithmetic with the constants below. `--measured` compares the formula for one layer with
what the solver study measured, at the product rate that it measured in the same run.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.lib.shapes import MODELS, Blocks, Input, inputs_of, layer_counts
from eval.studies.solver.methods import OURS
from magr_gptq.config.settings import DEFAULT_ITERATIONS
from magr_gptq.reduction.solver import CHUNK_ELEMENTS, DEVICE_CHUNK_ELEMENTS

ITERATIONS = DEFAULT_ITERATIONS
# of magr_gptq.reduction.penalty and magr_gptq.reduction.admm: the variances, and the solver's
CHOLESKYS, INVERSES = 2, 1
# a squared norm, by one triangle of blocks, as a share of a product
NORM = 5 / 8
# the default, in groups: two strengths, a candidate each; products of the candidates'
# errors, one and about a half of a sweep, one of two fits of scales, one of the target, and the loss
STRENGTHS, CANDIDATES = 2, 2
AROUND = CANDIDATES * NORM + 1.5 + 1 + 1 + NORM
# calibration: 128 rows of 2,048 tokens, each block run once for the Hessians and once for its output
TOKENS = 128 * 2048
FORWARDS = 2
# reads and writes of a matrix [rows, columns] in an iteration: the product's own, and the rest of it
PRODUCT_PASSES, FUSED_PASSES = 3, 6
# plain torch: 19 outside the threshold's Newton steps, and 8 in each, of which there are about 4
PLAIN_PASSES = 19 + 8 * 4
FLOAT = 4
RANKS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Device:
    """Flops and bytes a second that are assumed to be reached; the published peaks times a guess.

    fp32, tf32: products, 0.7 of the peak. factor: Cholesky and inverse in float32, 0.3 of its peak.
    bandwidth: 0.8 of the peak.
    """

    name: str
    fp32: float
    tf32: float
    factor: float
    bandwidth: float


DEVICES = [
    Device("A100", 0.7 * 19.5e12, 0.7 * 156e12, 0.3 * 19.5e12, 0.8 * 2.0e12),
    Device("H200", 0.7 * 67e12, 0.7 * 495e12, 0.3 * 67e12, 0.8 * 4.8e12),
]


def factorization(columns: int) -> float:
    """Flops: n³/3 for a Cholesky, 2n³/3 for an inverse from it."""
    return (CHOLESKYS + 2 * INVERSES) / 3 * columns**3


def products(rows: int, columns: int) -> float:
    """Flops: one product an iteration, and the objective at the end."""
    return 2 * (ITERATIONS + NORM) * rows * columns**2


def default_products(rows: int, columns: int) -> float:
    """Flops of the default in groups, around the toolkit's rounding; per channel a quarter product more."""
    return STRENGTHS * products(rows, columns) + 2 * AROUND * rows * columns**2


def gptq(rows: int, columns: int, candidates: int = 1) -> float:
    """Flops: Cholesky, inverse, Cholesky, and every column's error spread over those after it."""
    return 4 / 3 * columns**3 + candidates * rows * columns**2


def peak_bytes(rows: int, columns: int, elements: int = CHUNK_ELEMENTS) -> float:
    """Beyond float32 weight and Hessian: two copies of it, or one product and the rows.

    Of the rows there are four chunks and those that are finished, or two results.
    """
    size, chunk = rows * columns, min(rows * columns, elements)
    return FLOAT * max(2 * columns**2, columns**2 + max(size + 3 * chunk, 2 * size))


def peak_bytes_cuda(rows: int, columns: int) -> float:
    """The same on CUDA, where chunks are larger; torch inverts in a copy, which makes no more than two."""
    return peak_bytes(rows, columns, DEVICE_CHUNK_ELEMENTS)


def work(inputs: list[Input]) -> dict[str, float]:
    """Flops of quantizing a model; every layer gets a Hessian of its own, as in the toolkits."""
    layers = [(rows, shared) for shared in inputs for rows in shared.rows]
    return {
        "forward": sum(FORWARDS * 2 * TOKENS * i.share * i.count * m * i.columns for m, i in layers),
        "Hessians": sum(2 * TOKENS * i.share * i.count * i.columns**2 for _, i in layers),
        "GPTQ": sum(i.count * gptq(m, i.columns) for m, i in layers),
        "factorization": sum(i.count * factorization(i.columns) for _, i in layers),
        "factorization, shared": sum(i.count * factorization(i.columns) for i in inputs),
        "products": sum(i.count * products(m, i.columns) for m, i in layers),
    }


def work_table() -> list[list[str]]:
    """Petaflops of every part, and MagR's share of their sum."""
    rows = [["model", "layers", "parameters", "forward", "Hessians", "GPTQ", "MagR: factors", "shared",
             "MagR: products", "MagR's share", "default: products", "default's share"]]  # fmt: skip
    for model in MODELS:
        counts, found = layer_counts(model), work(inputs_of(model))
        ours = found["factorization"] + found["products"]
        total = found["forward"] + found["Hessians"] + found["GPTQ"] + ours
        parameters = sum(m * n * count for (m, n), count in counts.items())
        whole = sum(default_products(*shape) * count for shape, count in counts.items())
        more = sum(gptq(*shape, CANDIDATES) * count for shape, count in counts.items()) - found["GPTQ"]
        default = found["factorization"] + whole + more
        rows.append(
            [model, f"{sum(counts.values()):,}", f"{parameters / 1e9:.1f} G"]
            + [f"{value / 1e15:,.2f}" for value in found.values()]
            + [f"{100 * ours / total:.0f} %", f"{whole / 1e15:,.2f}"]
            + [f"{100 * default / (total - ours + default):.0f} %"]
        )
    return rows


def time_table(device: Device) -> list[list[str]]:
    """Seconds of MagR for a whole model on one device, part by part."""
    rows = [["model", "factors", "shared", "products fp32", "TF32", "update, plain", "fused",
             "sum: fp32, plain", "sum: TF32, fused, shared"]]  # fmt: skip
    for model in MODELS:
        found = work(inputs_of(model))
        elements = sum(m * n * count for (m, n), count in layer_counts(model).items())
        moved = ITERATIONS * FLOAT * elements / device.bandwidth
        own, shared = (found[key] / device.factor for key in ("factorization", "factorization, shared"))
        slow, fast = found["products"] / device.fp32, found["products"] / device.tf32
        plain, fused = moved * PLAIN_PASSES, moved * (FUSED_PASSES + PRODUCT_PASSES)
        parts = [own, shared, slow, fast, plain, fused, own + slow + plain, shared + fast + fused]
        rows.append([model, *(f"{part:,.1f}" for part in parts)])
    return rows


def memory_table() -> list[list[str]]:
    """GB of the layer that needs most, in float32."""
    rows = [["model", "layer", "weight", "Hessian", "MagR beyond them", "of 4W + 2H", "on CUDA"]]
    for model in MODELS:
        m, n = max(layer_counts(model), key=lambda shape: peak_bytes(*shape))
        weight, hessian, peak = FLOAT * m * n, FLOAT * n**2, peak_bytes(m, n)
        *sizes, cuda = (f"{size / 1e9:.2f}" for size in (weight, hessian, peak, peak_bytes_cuda(m, n)))
        rows.append([model, f"{m} x {n}", *sizes, f"{peak / (4 * weight + 2 * hessian):.2f}", cuda])
    return rows


def ranks_table() -> list[list[str]]:
    """How many times faster MagR is on several ranks, with llm-compressor's assignment of layers."""
    rows = [["model", *(f"{ranks} ranks" for ranks in RANKS[1:])]]
    for model, blocks in MODELS.items():
        alone, *others = (seconds_on_ranks(blocks, ranks) for ranks in RANKS)
        rows.append([model, *(f"{alone / seconds:.1f}" for seconds in others)])
    return rows


def seconds_on_ranks(model: list[Blocks], ranks: int) -> float:
    """Of the slowest rank in every block; widest layers first, to the rank with the least width so far."""
    return sum(blocks.count * max(_rank_seconds(blocks, ranks)) for blocks in model)


def _rank_seconds(blocks: Blocks, ranks: int) -> list[float]:
    device = DEVICES[-1]
    layers = [(i.columns, m) for i in blocks.inputs for m in i.rows for _ in range(i.count)]
    heap = [(0, rank) for rank in range(ranks)]
    seconds = [0.0] * ranks
    for columns, rows in sorted(layers, reverse=True):
        width, rank = heapq.heappop(heap)
        seconds[rank] += factorization(columns) / device.factor + products(rows, columns) / device.tf32
        heapq.heappush(heap, (width + columns, rank))
    return seconds


def measured_table(record: dict[str, Any]) -> list[list[str]]:
    """Seconds of the formula's flops at the measured product rate, and those that were measured."""
    rows = [["layer", "GFLOP", "at the product rate, s", "measured, s", "times"]]
    for name, layer in record["layers"].items():
        flops = factorization(layer["columns"]) + products(layer["rows"], layer["columns"])
        least, seconds = flops / record["product_flops"], layer["seconds"][OURS]["median"]
        rows.append([name, f"{flops / 1e9:.2f}", f"{least:.4f}", f"{seconds:.4f}", f"{seconds / least:.1f}"])
    return rows


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its heading."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def report() -> str:
    """All tables that need nothing measured, each under its title."""
    tables = {"Work, in petaflops": work_table()}
    tables |= {
        f"Seconds on one {device.name}, by the assumed rates": time_table(device) for device in DEVICES
    }
    tables |= {"Memory of the largest layer, in GB": memory_table(), "Several ranks": ranks_table()}
    return "\n".join(f"**{title}**\n\n{markdown(rows)}" for title, rows in tables.items())


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measured", type=Path, help="results of eval.studies.solver.run")
    args = parser.parse_args()
    print(markdown(measured_table(json.loads(args.measured.read_text()))) if args.measured else report())


if __name__ == "__main__":
    main()
