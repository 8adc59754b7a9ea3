"""What an unmodified AutoGPTQ sees; run by path in a process of its own.

dequantize FOLDER...   writes FOLDER/dequantized.pt for each checkpoint
quantize MODEL OUT     plain GPTQ, 3 bits, groups of 32
"""

from __future__ import annotations

from pathlib import Path

import dump_command
import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling import _base
from auto_gptq.modeling.llama import LlamaGPTQForCausalLM
from tiny import calibration_rows
from transformers import AutoModelForCausalLM


def dequantize(folder: Path) -> None:
    """Every layer's weight [out, in]: what the toolkit's own kernel answers to the identity."""
    # float32 holds the product of a stored scale and a code exactly
    model = AutoGPTQForCausalLM.from_quantized(
        str(folder), device="cpu", torch_dtype=torch.float32, disable_exllama=True, disable_exllamav2=True
    )
    weights = {}
    for name, module in model.model.named_modules():
        if hasattr(module, "qweight"):
            module.bias = None
            weights[name] = module(torch.eye(module.infeatures)).T.contiguous()
    torch.save(weights, folder / "dequantized.pt")


def quantize(model_folder: str, out: str) -> None:
    """Exactly what `test_autogptq.quantize` does with magr left out, on a machine without CUDA."""
    # three things stop AutoGPTQ there; the third is its from_pretrained, which is not called
    _base.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda: None
    model = AutoModelForCausalLM.from_pretrained(model_folder, torch_dtype=torch.float16).eval()
    quantizable = LlamaGPTQForCausalLM(model, False, BaseQuantizeConfig(bits=3, group_size=32))
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in calibration_rows()]
    quantizable.quantize(rows, batch_size=8)
    quantizable.save_quantized(out)


if __name__ == "__main__":
    dump_command.run(dequantize, quantize)
