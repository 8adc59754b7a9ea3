"""The fused kernels on saved inputs, on the GPU where there is one, else by Triton's interpreter.

python dump_kernels.py INPUTS OUT     a list of (kernel, keyword arguments), saved by torch; OUT gets a
                                      list of those arguments as they are afterwards, with the result

A process of its own: the interpreter must be switched on before triton is first imported.
"""

from __future__ import annotations

import os
import sys

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from magr_gptq.reduction.kernels.fused import fused_update_  # noqa: E402
from magr_gptq.rounding.kernels.fused import fused_sweep_block_  # noqa: E402

KERNELS = {"update": fused_update_, "sweep": fused_sweep_block_}


def main(inputs: str, out: str) -> None:
    """Run every argument set, and say where it ran."""
    results = []
    for name, arguments in torch.load(inputs):
        on_device = {k: x.to(DEVICE) if torch.is_tensor(x) else x for k, x in arguments.items()}
        tensors = {"result": KERNELS[name](**on_device), **on_device}
        results.append({k: x.cpu() for k, x in tensors.items() if torch.is_tensor(x)})
    torch.save(results, out)
    print(DEVICE)


if __name__ == "__main__":
    main(*sys.argv[1:])
