"""Quantize a model with AutoGPTQ, on a GPU where there is one, else on the CPU."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import InputsSeen, full_report, quantized_layers, refuse_shared
from magr_gptq.errors import InputError
from magr_gptq.toolkits.report import RunReport

ZEROED = "no calibration token reached it, and the toolkit stores zeros for such a layer"


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, RunReport]:
    """Load, quantize on the windows, save; the seconds of quantize() and what became of every layer."""
    if config.model_type not in GPTQ_CAUSAL_LM_MODEL_MAP:
        raise InputError(f"auto-gptq 0.7 knows no {config.model_type!r} models; use --engine gptqmodel")
    if job.rounding == "nearest" and job.magr is None:
        raise InputError("auto-gptq has no plain rounding to nearest; use --engine gptqmodel")
    # the calibration passes run in this dtype, and CPUs multiply float32 several times faster
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    # without CUDA this is a RuntimeError, but for what magr_gptq.enable() answers there
    model = AutoGPTQForCausalLM.from_pretrained(
        job.model, _quantize_config(job), torch_dtype=dtype, trust_remote_code=job.trust_remote_code
    )
    if job.magr is not None:
        refuse_shared(model.model)
    rows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows]
    start = time.perf_counter()
    with _LayerCounter(progress), InputsSeen(model.model) as seen:
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


class _LayerCounter(logging.Filter):
    """AutoGPTQ has no callback, but logs the number of each layer that it starts."""

    _logger = logging.getLogger("auto_gptq.modeling._base")

    def __init__(self, progress: Callable[[int], None]) -> None:
        super().__init__()
        self._progress = progress

    def filter(self, record: logging.LogRecord) -> bool:
        started = re.match(r"Start quantizing layer (\d+)/", record.getMessage())
        if started:
            self._progress(int(started[1]) - 1)
        return True

    def __enter__(self) -> None:
        self._logger.addFilter(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)
