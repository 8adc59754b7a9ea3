"""Quantizing a tiny model with the real GPTQModel, in this process or in an untouched one."""

from __future__ import annotations

from pathlib import Path

import torch
from forked import run_forked
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from places import HELPERS
from tiny import calibration_rows


def load(folder: str, **settings):
    config = QuantizeConfig(device="cpu", **{"act_group_aware": False, "offload_to_disk": False, **settings})
    return GPTQModel.load(folder, quantize_config=config, backend=BACKEND.TORCH, dtype=torch.float16)


def quantize(folder: str, **settings):
    model = load(folder, **settings)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration_rows()]
    model.quantize(rows, batch_size=1, backend=BACKEND.TORCH)
    return model


def run_vanilla(*arguments: str, cwd: Path) -> None:
    """A process that never imports magr_gptq (it checks that itself)."""
    done = run_forked(str(HELPERS / "dump_gptqmodel.py"), *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
