"""The machine, the rates that times depend on, and the fused update over the time of moving its bytes."""

from __future__ import annotations

from functools import partial

import torch

from eval.studies.scaling.run import FLOAT, FUSED_PASSES
from eval.studies.solver.measure import machine, product_rate
from magr_gptq.reduction.kernels import update_
from tools.gpu.kernels import VARIANTS, update_arguments
from tools.gpu.part import Part, parse, tf32

# rows, columns, group size
UPDATES = [(4096, 4096, 128), (4096, 4096, -1), (4096, 8192, -1), (2048, 8192, 128)]
DRY_UPDATES = [(64, 64, 32)]


def copied_bytes(part: Part) -> float:
    """Read and written, in a second."""
    source = torch.rand(2**16 if part.dry else 2**30, device=part.device)
    copied = torch.empty_like(source)
    return 2 * FLOAT * source.numel() / part.seconds(partial(copied.copy_, source))


def main(part: Part) -> None:
    """A line each."""
    with part.case() as found:
        found["machine"] = machine(part.device)
    for on in (False, True):
        with part.case(rate="products", tf32=on) as found, tf32(on):
            found["flops"] = product_rate(part.device, 64 if part.dry else None)
    bandwidth = copied_bytes(part)
    part.write(rate="memory", bytes_a_second=bandwidth)
    for rows, columns, size in DRY_UPDATES if part.dry else UPDATES:
        with part.case(update=f"{rows} x {columns}", group_size=size) as found:
            given = update_arguments(rows, columns, size, VARIANTS[0], part.device)
            seconds = part.seconds(partial(update_, **given))
            found |= {
                "seconds": seconds,
                "of_its_bytes": seconds * bandwidth / (FUSED_PASSES * FLOAT * rows * columns),
            }


if __name__ == "__main__":
    main(parse(__doc__))
