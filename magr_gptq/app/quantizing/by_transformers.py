"""Quantize a model with transformers' GPTQConfig, that is by optimum and GPTQModel, while it is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import AutoModelForCausalLM, GPTQConfig

from magr_gptq.app.quantizing.by_optimum import STARTS, how_loaded, report, save, settings
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.progress import StartsHeard
from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.toolkits.report import RunReport


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, RunReport]:
    """Quantize on the windows and save; the seconds with loading, and what became of every layer."""
    require_savable(config, job.engine)
    quantization = GPTQConfig(**settings(job, windows, batch_size))
    start = time.perf_counter()
    with StartsHeard(*STARTS, progress):
        model = AutoModelForCausalLM.from_pretrained(
            job.model, quantization_config=quantization, **how_loaded(job, config)
        )
    seconds = time.perf_counter() - start
    save(model, job.out)
    return seconds, report(job, model, {})
