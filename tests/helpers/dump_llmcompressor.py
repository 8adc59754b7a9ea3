"""What transformers and llm-compressor see without magr_gptq; run by path in a process of its own.

python dump_llmcompressor.py dequantize FOLDER...     writes FOLDER/dequantized.pt for each checkpoint
python dump_llmcompressor.py quantize MODEL OUT       plain GPTQ, 3 bits, groups of 32
"""

from __future__ import annotations

from pathlib import Path

import dump_command
import torch
from transformers import AutoModelForCausalLM


def dequantize(folder: Path) -> None:
    """Every linear layer's weight after transformers has answered with it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(torch.arange(1, 33)[None]).logits.isfinite().all()
    weights = {name: m.weight.data for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    torch.save(weights, folder / "dequantized.pt")


def quantize(model: str, out: str) -> None:
    """Exactly what `MagRGPTQModifier(magr=False)` is to do in the tests."""
    import llmcompressor_runs as runs
    from llmcompressor.modifiers.gptq import GPTQModifier

    runs.quantize([GPTQModifier(config_groups=runs.scheme(3, 32), ignore=["lm_head"])], model, out)


if __name__ == "__main__":
    dump_command.run(dequantize, quantize)
