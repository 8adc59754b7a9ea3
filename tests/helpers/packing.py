"""Quantized checkpoints written by hand: rounded to nearest, packed by the formats' definitions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYERS = ("_proj", "c_attn", "c_proj", "c_fc")


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 words [rows, words] of codes [rows, codes]: code i in bits i·b … i·b + b − 1 of its row."""
    words = []
    for row in codes.tolist():
        stream = sum(code << bits * place for place, code in enumerate(row))
        found = [(stream >> 32 * word) & (2**32 - 1) for word in range(-(-len(row) * bits // 32))]
        words.append([word - 2**32 if word >= 2**31 else word for word in found])
    return torch.tensor(words, dtype=torch.int32)


def write_checkpoint(
    model: Path, folder: Path, *, bits: int, group_size: int, sym: bool = True, desc_act: bool = False,
    form: str = "gptq",
) -> Path:  # fmt: skip
    """A checkpoint of a float16 model folder; form: gptq, gptq_v2 or compressed."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2]:
        layer = name.removesuffix(".weight")
        if layer.endswith(LAYERS):
            weight = tensors.pop(name)
            # GPT-2 stores [in, out]
            weight = weight if layer.endswith("_proj") and "c_proj" not in layer else weight.T
            found = _rounded(weight.float(), bits, group_size, sym, desc_act)
            parts = (_compressed if form == "compressed" else _gptq)(*found, bits, form)
            tensors |= {f"{layer}.{key}": value for key, value in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = _settings(bits, group_size, sym, desc_act, form)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _rounded(weight: torch.Tensor, bits: int, group_size: int, sym: bool, desc_act: bool):
    """Codes [out, in], scales and zero points [out, groups], group of every column."""
    size = weight.shape[1] if group_size == -1 else group_size
    group = torch.arange(weight.shape[1]) // size
    if desc_act:
        group = group[torch.randperm(len(group), generator=torch.Generator().manual_seed(3))]
    top, scales, zeros = 2**bits - 1, [], []
    for number in range(int(group.max()) + 1):
        part = weight[:, group == number]
        if sym:
            scales.append(2 * part.abs().amax(1) / top)
            zeros.append(torch.full((len(part),), 2 ** (bits - 1)))
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scales.append((high - low) / top)
            # the first format can't hold 0, which it stores less one
            zeros.append((-low / scales[-1]).round().long().clamp(1, top))
    scales, zeros = torch.stack(scales, 1).half(), torch.stack(zeros, 1)
    codes = (weight / scales.float()[:, group]).round().long() + zeros[:, group]
    return codes.clamp(0, top), scales, zeros, group


def _gptq(codes, scales, zeros, group, bits: int, form: str) -> dict[str, torch.Tensor]:
    less = 1 if form == "gptq" else 0
    return {
        "qweight": pack(codes, bits).T.contiguous(),
        "qzeros": pack(zeros.T - less, bits),
        "scales": scales.T.contiguous(),
        "g_idx": group.int(),
    }


def _compressed(codes, scales, zeros, group, bits: int, _form: str) -> dict[str, torch.Tensor]:
    return {
        "weight_packed": pack(codes, bits),
        "weight_zero_point": pack(zeros.T, bits).T.contiguous(),
        "weight_scale": scales,
        "weight_shape": torch.tensor(codes.shape),
    }


def _settings(bits: int, group_size: int, sym: bool, desc_act: bool, form: str) -> dict:
    if form == "compressed":
        weights = {
            "num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": group_size
        }  # fmt: skip
        group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
        return {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": group}, "quantization_status": "compressed",
        }  # fmt: skip
    return {
        "quant_method": "gptq", "checkpoint_format": form, "bits": bits, "group_size": group_size, "sym": sym,
        "desc_act": desc_act, "lm_head": False, "pack_dtype": "int32",
    }  # fmt: skip
