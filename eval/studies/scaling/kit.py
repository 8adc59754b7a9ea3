"""Predictions for the GPU kit (tools/gpu), in seconds of LLaMA-2-7B's 224 layers, from arithmetic alone.

python -m eval.studies.scaling.kit
"""

from __future__ import annotations

from dataclasses import replace

from eval.lib.shapes import inputs_of, layer_counts
from eval.studies.scaling.run import (
    DEVICES,
    FLOAT,
    FUSED_PASSES,
    ITERATIONS,
    PRODUCT_PASSES,
    STRENGTHS,
    Device,
    default_products,
    markdown,
    work,
)
from eval.studies.solver.methods import STEPS

MODEL = "llama2-7b"
SWEEPS = 30
# guesses: a column of the sweep's kernel waits for a few reads from a cache; torch sorts 5·10⁹ numbers a
# second, and the paper's step passes over the matrix 20 times more
COLUMN_SECONDS, SORTED_A_SECOND, PAPER_PASSES = 1e-6, 5e9, 20
H200 = DEVICES[-1]
H100 = replace(H200, name="H100", bandwidth=0.8 * 3.35e12)


def predictions(device: Device, rate: float) -> dict[str, float]:
    """Seconds of what the kit times, by its names; rate: of products."""
    found, counts = work(inputs_of(MODEL)), layer_counts(MODEL)
    one_product = sum(2 * m * n**2 * count for (m, n), count in counts.items()) / rate
    elements = sum(m * n * count for (m, n), count in counts.items())
    columns = sum(n * count for (_, n), count in counts.items()) * COLUMN_SECONDS
    one_pass = FLOAT * elements / device.bandwidth
    updates = ITERATIONS * (FUSED_PASSES + PRODUCT_PASSES) * one_pass
    shared = found["factorization, shared"] / device.factor
    alone = found["factorization"] / device.factor
    own = sum(default_products(*shape) * count for shape, count in counts.items()) / rate
    return {
        "factorizations, one an input": shared,
        "`reduce`, one strength, each layer alone": alone + found["products"] / rate + updates,
        "the default's own work, shared factorizations": shared + own + STRENGTHS * updates + columns,
        "30 sweeps": SWEEPS * (1.5 * one_product + columns),
        "the paper's 150 steps": STEPS * (one_product + elements / SORTED_A_SECOND + PAPER_PASSES * one_pass),
    }


def table() -> str:
    """Both devices, IEEE and TF32."""
    modes = [(device, mode) for device in (H100, H200) for mode in ("fp32", "tf32")]
    heading = ["", *(f"{d.name}, {'IEEE' if mode == 'fp32' else 'TF32'}" for d, mode in modes)]
    found = [predictions(device, getattr(device, mode)) for device, mode in modes]
    return markdown([heading, *([name, *(f"{x[name]:.1f}" for x in found)] for name in found[0])])


if __name__ == "__main__":
    print(table())
