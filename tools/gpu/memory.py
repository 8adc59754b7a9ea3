"""Peaks of memory beyond float32 weight and Hessian, in weights: `reduce`, and all that the default does."""

from __future__ import annotations

from functools import partial

from eval.studies.scaling.run import FLOAT, peak_bytes_cuda
from magr_gptq import reduce
from tools.gpu.layer import BITS, Made
from tools.gpu.part import Part, parse

SHAPES = [(8192, 1024), (4096, 4096), (4096, 11008), (8192, 28672)]
DRY_SHAPES = [(128, 128)]
GROUPS = (128, -1)


def main(part: Part) -> None:
    """A line a shape and group size."""
    for rows, columns in DRY_SHAPES if part.dry else SHAPES:
        size = FLOAT * rows * columns
        for group_size in GROUPS:
            with part.case(shape=f"{rows} x {columns}", group_size=group_size) as found:
                made = Made.of(rows, columns, part.device, group_size)
                peak = part.peak(partial(reduce, made.weight, made.hessian, bits=BITS, group_size=group_size))
                found |= {
                    "reduce": peak / size,
                    "predicted": peak_bytes_cuda(rows, columns) / size,
                    "default": part.peak(made.default_work) / size,
                }
                del made


if __name__ == "__main__":
    main(parse(__doc__))
