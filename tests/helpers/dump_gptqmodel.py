"""What an unmodified GPTQModel sees; run by path in a process of its own.

python dump_gptqmodel.py dequantize FOLDER...     writes FOLDER/dequantized.pt for each checkpoint
python dump_gptqmodel.py quantize MODEL OUT       plain GPTQ, 3 bits, groups of 32
"""

from __future__ import annotations

from pathlib import Path

import dump_command
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from tiny import calibration_rows


def dequantize(folder: Path) -> None:
    """Every layer's weight [out, in] as the toolkit's own kernel reads it."""
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    weights = {
        name: module.dequantize_weight().T.contiguous()
        for name, module in model.model.named_modules()
        if hasattr(module, "dequantize_weight")
    }
    torch.save(weights, folder / "dequantized.pt")


def quantize(model_folder: str, out: str) -> None:
    """Exactly what `test_gptqmodel.quantize` does with magr left out."""
    config = QuantizeConfig(bits=3, group_size=32, device="cpu", offload_to_disk=False)
    model = GPTQModel.load(model_folder, quantize_config=config, backend=BACKEND.TORCH, dtype=torch.float16)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    model.quantize(rows, batch_size=1, backend=BACKEND.TORCH)
    model.save(out)


if __name__ == "__main__":
    dump_command.run(dequantize, quantize)
