"""Quantizing a tiny model through transformers and through optimum, and saving it as each documents."""

from __future__ import annotations

from pathlib import Path

import torch
from optimum.gptq import GPTQQuantizer
from tiny import calibration_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

TEXTS = ["".join(chr(32 + (token * token + 7 * row) % 95) for token in range(64)) for row in range(8)]


def quantize_by_transformers(model_folder: str, out: Path, **settings):
    """`GPTQConfig` and `save_pretrained`."""
    config = GPTQConfig(dataset=TEXTS, tokenizer=model_folder, **settings)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, quantization_config=config, dtype=torch.float16
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(out)
    return model


def quantize_by_optimum(model_folder: str, out: Path, **settings):
    """`GPTQQuantizer` and its `save`; beside it, in OUT-pretrained, the same model's `save_pretrained`."""
    rows = [{"input_ids": [row.tolist()], "attention_mask": [[1] * len(row)]} for row in calibration_rows()]
    quantizer = GPTQQuantizer(dataset=rows, **settings)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float16)
    model = quantizer.quantize_model(model)
    other = out.with_name(f"{out.name}-pretrained")
    # `save` changes the zero points of the model in memory, so it comes last
    model.save_pretrained(other)
    quantizer.save(model, str(out))
    for folder in (out, other):
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return model


QUANTIZE = {"transformers": quantize_by_transformers, "optimum": quantize_by_optimum}
