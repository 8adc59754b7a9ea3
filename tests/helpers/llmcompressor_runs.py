"""Quantizing tiny models, or single layers, with the real llm-compressor."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import initialize_module_for_quantization
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization.calibration import initialize_observer, observe
from places import HELPERS
from tiny import calibration_rows


def weights(bits: int, group_size: int = -1, symmetric: bool = True, **settings) -> dict:
    """A weight scheme as recipes write it."""
    grouped = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, **grouped, **settings}


def scheme(*args, targets: str = "Linear", **settings) -> dict:
    """`config_groups` with one weight scheme."""
    return {"group_0": {"targets": [targets], "weights": weights(*args, **settings)}}


def quantize(recipe, model, out: Path | str | None = None, rows: torch.Tensor | None = None, **settings):
    """`oneshot`, with every row of token ids as one sample."""
    rows = calibration_rows() if rows is None else rows
    dataset = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": (rows >= 0).long().tolist()})
    return oneshot(
        model=model, dataset=dataset, recipe=recipe, num_calibration_samples=len(rows),
        shuffle_calibration_samples=False, output_dir=None if out is None else str(out), **settings,
    )  # fmt: skip


def round_layers(modifier, layers: list[tuple[torch.Tensor, torch.Tensor]], dtype=torch.float32) -> list:
    """Linear modules of these weights, rounded by the modifier with these very Hessians."""
    (group,) = modifier.resolved_config.config_groups.values()
    modules = []
    for weight, hessian in layers:
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
        module.weight.requires_grad_(False).copy_(weight)
        initialize_module_for_quantization(module, group)
        initialize_observer(module, "weight")
        observe(module, "weight")
        modifier._module_names[module] = f"layer {len(modules)}"
        modifier._hessians[module] = hessian.clone()
        modifier._num_samples[module] = torch.ones(())
        modules.append(module)
    modifier.compress_module_list(modules)
    return modules


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the recipe, which names the modifier's class."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "recipe.yaml"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_script(command: list[str], *arguments: str, cwd: Path) -> None:
    """A process of its own, which finds the modules of the tests."""
    environment = {**os.environ, "PYTHONPATH": str(HELPERS)}
    done = subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
