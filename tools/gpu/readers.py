"""Checkpoints loaded by one of GPTQModel's kernels: predictions against those of a plain dequantization.

A control has the absolute values of all scales: so far off a kernel would be that takes scales for positive.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from magr_score.divergence import divergence
from magr_score.packed import tensors
from tools.gpu.models import windows
from tools.gpu.part import Part, parse

BITS = {"gptq_marlin": (4,), "gptq_exllama_v2": (4,), "gptq_triton": (2, 4), "gptq_torch": (2, 4)}
# nats a token: of arithmetic in 16 bits
ARITHMETIC = 1e-3
COUNT, LENGTH = 4, 256
DRY_COUNT, DRY_LENGTH = 1, 32


def unsigned(folder: Path, out: Path) -> Path:
    """The checkpoint as a kernel reads it that knows no sign of scales."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    for file in out.glob("*.safetensors"):
        saved = load_file(file)
        save_file({n: x.abs() if n.endswith(".scales") else x for n, x in saved.items()}, file)
    return out


@torch.no_grad()
def dequantized(folder: Path, original: str, rows: Tensor, device: str) -> Tensor:
    """Logits of the original model with the checkpoint's weights in float32."""
    # transformers decorates what moves a model, and its types are lost
    model: Any = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    loaded = model.load_state_dict(tensors(str(folder)), strict=False)
    if loaded.unexpected_keys or set(loaded.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"{folder.name} has other tensors than {original}: {loaded}")
    logits: Tensor = model.to(device).eval()(input_ids=rows).logits
    return logits


@torch.no_grad()
def read(folder: Path, backend: str, rows: Tensor, device: str) -> tuple[Tensor, dict[str, int]]:
    """Logits by the kernel, and the classes of layers that computed them."""
    where = f"{device}:0" if device == "cuda" else device
    model = GPTQModel.load(str(folder), backend=BACKEND(backend), device=where, dtype=torch.float16).model
    if device == "cpu":
        model = model.float()
    logits: Tensor = model.eval()(input_ids=rows).logits
    names = Counter(type(m).__name__ for m in model.modules() if hasattr(m, "qweight"))
    return logits, dict(names)


def compare(part: Part, folder: Path, original: str) -> dict[str, Any]:
    """Mean KL in nats a token."""
    count, length = (DRY_COUNT, DRY_LENGTH) if part.dry else (COUNT, LENGTH)
    rows = torch.tensor(windows(Path(original), "evaluation.txt", count, length), device=part.device)
    exact = dequantized(folder, original, rows, part.device)
    control = unsigned(folder, part.work / "unsigned")
    wrong = float(divergence(exact, dequantized(control, original, rows, part.device)).mean())
    found, layers = read(folder, part.backend, rows, part.device)
    kl = float(divergence(exact, found).mean())
    return {"kl": kl, "kl_unsigned": wrong, "layers": layers, "right": kl <= ARITHMETIC}


def main(part: Part) -> None:
    """A line a checkpoint."""
    for note in sorted((part.work / "checkpoints").glob("*.json")):
        about = json.loads(note.read_text())
        if about["bits"] in BITS[part.backend]:
            with part.case(checkpoint=note.stem, backend=part.backend) as found:
                found |= compare(part, note.with_suffix(""), about["original"])


if __name__ == "__main__":
    main(parse(__doc__))
