"""Quantize a model with AutoGPTQ, on a GPU where there is one, else on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import InputsSeen, full_report, quantized_layers, refuse_shared
from magr_gptq.app.quantizing.progress import StartsHeard
from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.errors import InputError
from magr_gptq.toolkits.report import RunReport

ZEROED = "no calibration token reached it, and the toolkit stores zeros for such a layer"
STARTS = "auto_gptq.modeling._base", r"Start quantizing layer (\d+)/"


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, RunReport]:
    """Load, quantize on the windows, save; the seconds of quantize() and what became of every layer."""
    if config.model_type not in GPTQ_CAUSAL_LM_MODEL_MAP:
        raise InputError(f"auto-gptq 0.7 does not know {config.model_type!r} models; use --engine gptqmodel")
    # the calibration passes run in this dtype, and CPUs multiply float32 several times faster
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    # without CUDA this is a RuntimeError, but for what magr_gptq.enable() answers there
    model = AutoGPTQForCausalLM.from_pretrained(
        job.model, _quantize_config(job), torch_dtype=dtype, trust_remote_code=job.trust_remote_code
    )
    require_savable(model.model.config, job.engine)
    if job.magr is not None:
        refuse_shared(model.model)
    rows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows]
    start = time.perf_counter()
    with StartsHeard(*STARTS, progress), InputsSeen(model.model) as seen:
        model.quantize(rows, batch_size=batch_size)
    seconds = time.perf_counter() - start
    model.model.to(torch.float16)
    model.model.config.torch_dtype = torch.float16
    model.save_quantized(job.out, use_safetensors=True)
    names = quantized_layers(model.model)
    fallbacks = {name: ZEROED for name in names if name not in seen}
    return seconds, full_report(job, model.quantize_config.magr_report, names, fallbacks)


def _quantize_config(job: Job) -> Any:
    options = job.options if job.magr is None else {**job.options, "magr": job.toolkit_magr}
    return BaseQuantizeConfig(
        bits=job.bits, group_size=job.group_size, sym=job.sym, desc_act=job.desc_act, **options
    )
