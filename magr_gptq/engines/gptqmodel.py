"""Quantize a model with GPTQModel, on a GPU where there is one, else on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

from magr_gptq.engines.job import Job


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, Any]:
    """Load, quantize on the windows, save; the seconds of quantize() and MagR's report."""
    on_gpu = torch.cuda.is_available()
    dtype = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.float16
    model = _load_on_gpu(job, dtype) if on_gpu else _load_on_cpu(job)
    # called with layer_idx and submodule_finalized
    model.layer_callback = lambda **event: progress(event["layer_idx"] + 1)
    rows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows]
    start = time.perf_counter()
    model.quantize(rows, batch_size=batch_size, backend=BACKEND.AUTO if on_gpu else BACKEND.TORCH)
    seconds = time.perf_counter() - start
    if not on_gpu:
        _parameters_to(model.model, dtype)
    model.save(job.out)
    return seconds, getattr(model.quantize_config, "magr_report", None)


def _load_on_gpu(job: Job, dtype: torch.dtype) -> Any:
    return GPTQModel.load(job.model, quantize_config=_quantize_config(job), dtype=dtype)


def _load_on_cpu(job: Job) -> Any:
    config = _quantize_config(job, device="cpu", offload_to_disk=False)
    # the calibration passes run in this dtype, and CPUs multiply float32 several times faster
    return GPTQModel.load(job.model, quantize_config=config, backend=BACKEND.TORCH, dtype=torch.float32)


def _quantize_config(job: Job, **options: Any) -> Any:
    if job.group_size == -1 or job.desc_act:
        # group-aware reordering, on by default, needs groups and the columns in their own order
        options["act_group_aware"] = False
    if job.magr is not None:
        options["magr"] = job.magr
    return QuantizeConfig(
        bits=job.bits, group_size=job.group_size, sym=job.sym, desc_act=job.desc_act, **options
    )


def _parameters_to(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """What was not quantized goes back to 16 bits; packed weights and their scales are buffers."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
