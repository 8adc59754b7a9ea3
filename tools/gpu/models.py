"""Whole models through GPTQModel, with and without MagR: seconds, memory, and checkpoints for `readers`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import magr_gptq
from eval.studies.solver.layers import DEMO
from eval.studies.solver.measure import seconds_of
from magr_gptq.app.text import load_text, random_windows
from tools.gpu.part import Part, parse

# divides the widths of the demo's model and of SmolLM2
GROUP_SIZE = 64
# bits, and whether with MagR; the first pair loads and compiles, and the second replaces it
CELLS = [(4, False), (4, True), (4, False), (4, True), (2, False), (2, True)]
WINDOWS, LENGTH = 32, 512
DRY_WINDOWS, DRY_LENGTH = 4, 64


def originals(part: Part) -> list[Path]:
    """The demo's model and those that were asked for; one block of the demo's in a dry run."""
    if not part.dry:
        return [DEMO / "model", *part.models]
    folder = part.work / "one-block"
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float16, num_hidden_layers=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)
    return [folder]


def windows(model: Path, text: str, count: int, length: int) -> list[list[int]]:
    """Of one of the demo's texts, seed 0."""
    tokens = AutoTokenizer.from_pretrained(model)(load_text(str(DEMO / "text" / text)))["input_ids"]
    return random_windows(tokens, count, length, seed=0)


def quantize(part: Part, original: Path, bits: int, magr: bool, out: Path) -> dict[str, Any]:
    """Load, quantize, save."""
    settings: dict[str, Any] = {"device": "cpu"} if part.dry else {}
    config = QuantizeConfig(
        bits=bits, group_size=GROUP_SIZE, offload_to_disk=False, magr=magr or None, **settings
    )
    model = GPTQModel.load(str(original), quantize_config=config, backend=BACKEND.TORCH, dtype=torch.float16)
    count, length = (DRY_WINDOWS, DRY_LENGTH) if part.dry else (WINDOWS, LENGTH)
    rows = [
        {"input_ids": row, "attention_mask": [1] * length}
        for row in windows(original, "calibration.txt", count, length)
    ]
    taken = {}

    def run() -> None:
        taken["seconds"] = seconds_of(
            lambda: model.quantize(rows, batch_size=8, backend=BACKEND.TORCH), part.device
        )

    peak = part.peak(run)
    model.save(str(out))
    report = magr and model.quantize_config.magr_report.summary()
    return {**taken, "peak_bytes": peak, "report": report, "negative_scales": negative_share(out)}


def negative_share(folder: Path) -> float:
    """The share of scales below zero."""
    below = total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118 (no dict)
                if name.endswith(".scales"):
                    scales = saved.get_tensor(name)
                    below, total = below + int((scales < 0).sum()), total + scales.numel()
    return below / total


def main(part: Part) -> None:
    """A line a checkpoint, which stays in the shared folder with the name of its original."""
    magr_gptq.enable("gptqmodel")
    for original in originals(part):
        for bits, magr in CELLS[:2] if part.dry else CELLS:
            out = part.work / "checkpoints" / f"{original.name}-w{bits}-{'magr' if magr else 'gptq'}"
            shutil.rmtree(out, ignore_errors=True)
            with part.case(model=original.name, bits=bits, magr=magr) as found:
                found |= quantize(part, original, bits, magr, out)
                out.with_suffix(".json").write_text(json.dumps({"original": str(original), "bits": bits}))


if __name__ == "__main__":
    main(parse(__doc__))
