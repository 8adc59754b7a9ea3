"""`fused_update_` on saved inputs, on the GPU where there is one, else by Triton's interpreter.

python dump_kernels.py INPUTS OUT     a list of argument sets, saved by torch; OUT gets the changed ones

A process of its own: the interpreter must be switched on before triton is first imported.
"""

from __future__ import annotations

import os
import sys

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from magr_gptq.kernels.fused import fused_update_  # noqa: E402


def main(inputs: str, out: str) -> None:
    """Run every argument set, and say where it ran."""
    results = []
    for arguments in torch.load(inputs):
        on_device = {k: x.to(DEVICE) if torch.is_tensor(x) else x for k, x in arguments.items()}
        matrices = [on_device.pop(name) for name in ("v", "z", "original", "target", "t", "metric")]
        levels = fused_update_(*matrices, **on_device)
        results.append([tensor.cpu() for tensor in (*matrices[:4], levels)])
    torch.save(results, out)
    print(DEVICE)


if __name__ == "__main__":
    main(*sys.argv[1:])
