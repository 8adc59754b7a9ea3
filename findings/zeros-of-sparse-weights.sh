#!/usr/bin/env bash
# GPTQ takes zeros away from sparse weights, at 8 bits as many as at 2.
#
# Guess:  symmetric grids have a zero, so a weight that was pruned to 0 stays 0; and if corrections move some, more bits
#         move fewer.
# Seen:   a correction of half a step makes a zero a code of its own. Corrections are in proportion to the step, so the
#         share does not depend on the bits. Of the 2:4 zeros in a random Llama GPTQModel loses 1 % and llm-compressor
#         2 %, and in o_proj, whose inputs are the most alike, 6 and 13 %. Neither log says so.
# Why:    a 2:4 kernel needs two zeros of every four. One that is gone makes the layer dense, or is cut off again.
# Ours:   MagR changes every weight and promises no zeros either (docs): prune after it, or not at all.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
import shutil

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from finding import expect, llama, rows, versions
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM

versions("torch", "gptqmodel", "llmcompressor")
llama("model")
shutil.copytree("model", "sparse")
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float16)
pruned = {}
for name, module in model.named_modules():
    if isinstance(module, torch.nn.Linear) and name != "lm_head":
        fours = module.weight.data.view(-1, 4)
        fours.scatter_(1, fours.abs().topk(2, 1, largest=False).indices, 0)  # 2:4
        pruned[name] = module.weight.data == 0
model.save_pretrained("sparse")
data = [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in rows(16)]


def gone(weights):
    """The share of pruned weights that are no longer 0: over all layers, and in o_proj."""
    count = sum(int((weights[name][zero] != 0).sum()) for name, zero in pruned.items())
    o_proj = next(name for name in pruned if name.endswith("o_proj"))
    share = float((weights[o_proj][pruned[o_proj]] != 0).float().mean())
    return count / sum(int(zero.sum()) for zero in pruned.values()), share


def by_gptqmodel(bits):
    config = QuantizeConfig(bits=bits, group_size=32, offload_to_disk=False, device="cpu")
    model = GPTQModel.load("sparse", config, backend=BACKEND.TORCH, dtype=torch.float16)
    model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
    model.save("out")
    loaded = GPTQModel.load("out", backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    layers = dict(loaded.model.named_modules())
    return gone({name: layers[name].dequantize_weight().T for name in pruned})


def by_llmcompressor(bits):
    model = AutoModelForCausalLM.from_pretrained("sparse", dtype=torch.float32)
    arguments = QuantizationArgs(num_bits=bits, group_size=32, strategy="group", symmetric=True)
    scheme = {"all": QuantizationScheme(targets=["Linear"], weights=arguments)}
    modifier = GPTQModifier(ignore=["lm_head"], config_groups=scheme)
    texts = Dataset.from_list(data)
    oneshot(model=model, dataset=texts, recipe=[modifier], num_calibration_samples=16, max_seq_length=64)
    layers = dict(model.named_modules())
    return gone({name: layers[name].weight for name in pruned})


for toolkit, quantize in (("GPTQModel", by_gptqmodel), ("llm-compressor", by_llmcompressor)):
    shares = {}
    for bits in (2, 4, 8):
        shares[bits], o_proj = quantize(bits)
        told = f"{shares[bits]:.2%}, in o_proj {o_proj:.1%}"
        expect(f"{toolkit}, {bits} bits: share of pruned weights that are not 0", told, o_proj > 0.02)
    ratio = shares[8] / shares[2]
    expect(f"{toolkit}: 8 bits over 2 bits", ratio, 0.5 < ratio)
PY
