"""llm-compressor's own Triton kernel for a block of columns, by Triton's interpreter, beside its eager loop.

python dump_block_kernel.py INPUTS OUT     a list of {weights, inverse, scale}, saved by torch; OUT gets a
                                           list of {eager, kernel}: what each rounds to, at 3 bits

A process of its own: the interpreter must be switched on before triton is first imported.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.utils.impl_backend import ImplBackend
from compressed_tensors.utils.triton import tl
from llmcompressor.modifiers.gptq import gptq_quantize
from llmcompressor.modifiers.gptq.helpers import get_triton_gptq_config

ARGS = QuantizationArgs(num_bits=3, type="int", symmetric=True, strategy="channel")
ROWS = 16  # of a program, as llm-compressor has it

# the interpreter can't call CUDA's functions
libdevice = tl.extra.cuda.libdevice
libdevice.div_rn = lambda a, b: a / b
libdevice.sub_rn = lambda a, b: a - b
libdevice.mul_rn = lambda a, b: a * b
libdevice.rint = lambda x: (x + 12582912.0) - 12582912.0  # 1.5 · 2²³: no digits are left below the point


def kernel(weights: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """By the kernel, called as `fused_gptq_block_update` does, which takes tensors on a GPU alone."""
    kind, lowest, highest = get_triton_gptq_config(ARGS)
    (rows, width), work = weights.shape, weights[None].clone()
    scales = scale.expand_as(weights)[None].contiguous()
    found, errors = torch.zeros_like(work), torch.zeros_like(work)
    strides = (*work.stride(), *inverse[None].stride(), *scales.stride(), 0, 0, 0, *found.stride())
    gptq_quantize._gptq_block_update_kernel[(1, -(-rows // ROWS))](
        work, inverse[None], scales, scales, found, errors, rows, *strides, *errors.stride(), lowest, highest,
        WIDTH=width, QUANT_TYPE=kind, DEQUANT_DTYPE=0, HAS_ZP=False, USE_FP8_E4B15=False, BLOCK_ROWS=ROWS,
    )  # fmt: skip
    return found[0]


def eager(weights: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """By the loop."""
    found, errors, losses = (torch.zeros_like(weights)[None] for _ in range(3))
    ImplBackend.call(
        "gptq_block_update", weights[None].clone(), inverse[None], found, errors, losses, scale=scale[None],
        zero_point=None, global_scale=None, g_idx=None, quant_args=ARGS, i1=0,
    )  # fmt: skip
    return found[0]


def main(inputs: str, out: str) -> None:
    """Round every set of inputs both ways."""
    torch.save([{"eager": eager(**i), "kernel": kernel(**i)} for i in torch.load(inputs)], out)


if __name__ == "__main__":
    main(*sys.argv[1:])
