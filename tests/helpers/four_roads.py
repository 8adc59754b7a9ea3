"""A model through the loop of every toolkit, `magr` on, at 3 bits with groups of 32."""

from __future__ import annotations

import torch
from tiny import calibration_rows
from transformers import AutoModelForCausalLM

BATCHES = 2


@torch.no_grad()
def given_to(model: str, layer: str) -> torch.Tensor:
    """What a layer of the unquantized model is given on the calibration rows, [tokens, columns] float64."""
    seen = []
    loaded = AutoModelForCausalLM.from_pretrained(model).float()
    loaded.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    for row in calibration_rows():
        loaded(input_ids=row[None])
    return torch.cat(seen).double()


def by_gptqmodel(model: str) -> None:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=3, group_size=32, device="cpu", offload_to_disk=False, magr=True)
    loaded = GPTQModel.load(model, config, backend=BACKEND.TORCH, dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    loaded.quantize(rows, batch_size=BATCHES, backend=BACKEND.TORCH)


def by_optimum(model: str) -> None:
    from optimum.gptq import GPTQQuantizer

    rows = [{"input_ids": [row.tolist()], "attention_mask": [[1] * len(row)]} for row in calibration_rows()]
    quantizer = GPTQQuantizer(bits=3, group_size=32, dataset=rows, magr=True)
    quantizer.quantize_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))


def by_llmcompressor(model: str) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot

    from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier

    rows = Dataset.from_list(
        [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    )
    weights = {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    modifier = MagRGPTQModifier(config_groups=groups, ignore=["lm_head"], batched_quantization=None)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    oneshot(
        model=loaded, dataset=rows, recipe=[modifier], num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )  # fmt: skip


def by_autogptq(model: str) -> None:
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    config = BaseQuantizeConfig(bits=3, group_size=32, desc_act=False, magr=True)
    loaded = AutoGPTQForCausalLM.from_pretrained(model, config, torch_dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    loaded.quantize(rows, batch_size=BATCHES)


ROADS = {
    "gptqmodel": by_gptqmodel,
    "optimum": by_optimum,
    "llm-compressor": by_llmcompressor,
    "auto-gptq": by_autogptq,
}
