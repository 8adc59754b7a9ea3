"""Work of the unquantized chain on paper: what a layer's target costs, in petaflops.

    python -m eval.studies.scaling.chain

The routed experts of a mixture have no target. Layers with one input share its sums, as in GPTQModel, whose
own product of a batch is the Gram matrix of its half, too; elsewhere it is made once more.
"""

from __future__ import annotations

from dataclasses import replace

from eval.lib.shapes import MODELS, Blocks, Input
from eval.studies.scaling.run import TOKENS, markdown
from magr_gptq.reduction.hessian import BLOCKS

Work = dict[str, float]
# of `target_of`: a Cholesky for each half and for both together; the product with what is lacking, and two
# triangular solves, which cost one product
CHOLESKYS, PRODUCTS, SOLVES = 3, 1, 1
# of the square, what is multiplied for a Gram matrix
TRIANGLE = (BLOCKS + 1) / (2 * BLOCKS)


def of_input(shared: Input, writes: bool) -> Work:
    """Flops of one kind of input; writes: whether its layer adds its output to the residual stream."""
    m, n, count = sum(shared.rows), shared.columns, shared.count
    paired = shared.share == 1
    # a writer's sums are of its output
    lacking = 2 * TOKENS * (m * n if writes else n**2)
    corrections = len(shared.rows) * CHOLESKYS / 3 * n**3 + 2 * (SOLVES + PRODUCTS * (not writes)) * m * n**2
    return {
        "original's forward": 2 * TOKENS * shared.share * count * m * n,
        "Gram, but for GPTQModel": 2 * TOKENS * count * TRIANGLE * n**2 * paired,
        "lacking": lacking * count * paired,
        "targets": corrections * count * paired,
    }


def of_model(model: list[Blocks]) -> Work:
    """Flops of all of its blocks."""
    found: Work = {}
    for blocks in model:
        hidden = blocks.inputs[0].columns
        for shared in blocks.inputs:
            some = replace(shared, count=shared.count * blocks.count)
            for name, flops in of_input(some, writes=shared.rows == (hidden,)).items():
                found[name] = found.get(name, 0) + flops
    return found


def table() -> str:
    """Petaflops, a row a model."""
    works = {name: of_model(model) for name, model in MODELS.items()}
    heading = ["model", *next(iter(works.values()))]
    return markdown([heading, *([n, *(f"{x / 1e15:,.2f}" for x in w.values())] for n, w in works.items())])


if __name__ == "__main__":
    print(table())
