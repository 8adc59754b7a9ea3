"""LLaMA-2-7B's 224 layers: one of each shape is timed, and counted as often as the model has it.

`reduce` under one strength, the default's own work around a toolkit's rounding, 30 sweeps, and the paper's
150 steps, extrapolated from 5; IEEE products and TF32. Layers with one input share a factorization.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from eval.lib.shapes import Input, inputs_of
from eval.studies.solver.methods import STEPS, Problem, largest_eigenvalue, paper_steps
from magr_gptq import reduce
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import prepare
from magr_gptq.rounding.settle import settle
from magr_gptq.rounding.sweep import coordinate_descent
from tools.gpu.layer import BITS, LOWEST, Made, nearest
from tools.gpu.part import Part, parse, tf32

MODEL = "llama2-7b"
DRY = [Input(128, (16, 8), 2), Input(256, (16,), 1)]
FEW = 5
SWEEPS = 30


def shapes(part: Part) -> Iterator[tuple[int, int, int, int]]:
    """Rows, columns, how many layers have them, and how many inputs of that width there are."""
    inputs = DRY if part.dry else inputs_of(MODEL)
    for columns in sorted({i.columns for i in inputs}):
        same = [i for i in inputs if i.columns == columns]
        for number, rows in enumerate(sorted({m for i in same for m in i.rows})):
            # a width's inputs are counted with the first of its shapes alone
            factorizations = 0 if number else sum(i.count for i in same)
            yield rows, columns, sum(i.count * i.rows.count(rows) for i in same), factorizations


def times(part: Part, made: Made) -> dict[str, Any]:
    """Seconds of one layer."""
    held = made.factorization()
    found: dict[str, Any] = {
        "factorization": part.seconds(made.factorization),
        "reduce": part.seconds(lambda: reduce(made.weight, made.hessian, bits=BITS)),
        "prepare": part.seconds(lambda: prepare(made.weight, made.hessian, made.plan, lambda _: held)),
    }
    layer, rows = prepare(made.weight, made.hessian, made.plan, lambda _: held)
    rounded = nearest(rows, made.plan.group_size)
    found["settle"] = part.seconds(lambda: settle(layer, Kept.of(layer, rounded)))
    first = rounded.rows(torch.arange(len(made.weight), device=part.device))
    scale, zero = (x[:, first.group_of] for x in (first.scale, first.zero))
    found["sweeps"] = part.seconds(
        lambda: coordinate_descent(
            first.weight, layer.target, layer.hessian, scale, zero,
            lowest=LOWEST, highest=-LOWEST - 1, sweeps=SWEEPS,
        )
    )  # fmt: skip
    return found


def paper_seconds(part: Part, made: Made) -> float:
    """Setup once, and 150 steps at the price of one of five."""
    largest = largest_eigenvalue(made.hessian)
    problem = Problem(made.weight, made.hessian, BITS, largest)
    setup = part.seconds(partial(largest_eigenvalue, made.hessian))
    return setup + STEPS / FEW * part.seconds(partial(paper_steps, problem, made.hessian / largest, FEW))


def main(part: Part) -> None:
    """The shapes that a sum needs, then lines for each and its mode."""
    part.write(shapes=[f"{rows} x {columns}" for rows, columns, *_ in shapes(part)])
    for rows, columns, layers, inputs in shapes(part):
        made = Made.of(rows, columns, part.device)
        for on in (False, True):
            names = {"shape": f"{rows} x {columns}", "layers": layers, "inputs": inputs, "tf32": on}
            with part.case(**names) as found, tf32(on):
                found |= times(part, made)
            with part.case(**names) as found, tf32(on):
                found["paper"] = paper_seconds(part, made)


if __name__ == "__main__":
    main(parse(__doc__))
