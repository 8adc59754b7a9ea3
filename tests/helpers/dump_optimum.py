"""What unmodified transformers, optimum and GPTQModel do; run by path in a process of its own.

python dump_optimum.py MODEL OUT FOLDER...

quantizes MODEL by plain GPTQ on each road into OUT/ROAD, 3 bits, groups of 32, then writes
FOLDER/dequantized.pt for each checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import init_empty_weights
from gptqmodel import BACKEND, GPTQModel
from optimum.gptq import load_quantized_model
from optimum_runs import QUANTIZE
from transformers import AutoConfig, AutoModelForCausalLM


def by_transformers(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)


def by_optimum(folder: Path) -> torch.nn.Module:
    """By optimum's own quantize_config.json, which it reads where config.json has no say."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    return load_quantized_model(model, str(folder), device_map={"": "cpu"})


def by_gptqmodel(folder: Path) -> torch.nn.Module:
    return GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model


def dequantize(folder: Path) -> None:
    """Every layer's weight [out, in] as the kernel of each loader reads it."""
    loaders = {"transformers": by_transformers, "gptqmodel": by_gptqmodel}
    if (folder / "quantize_config.json").exists():
        loaders["optimum"] = by_optimum
    weights = {
        loader: {
            name: module.dequantize_weight().T.contiguous()
            for name, module in load(folder).named_modules()
            if hasattr(module, "dequantize_weight")
        }
        for loader, load in loaders.items()
    }
    torch.save(weights, folder / "dequantized.pt")


if __name__ == "__main__":
    model_folder, out, *folders = sys.argv[1:]
    for road, quantize in QUANTIZE.items():
        quantize(model_folder, Path(out, road), bits=3, group_size=32)
    for argument in folders:
        dequantize(Path(argument))
    assert "magr_gptq" not in sys.modules
