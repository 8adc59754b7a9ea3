"""Quantize a model with optimum's GPTQQuantizer, which rounds with GPTQModel; on a GPU where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from optimum.gptq import GPTQQuantizer
from transformers import AutoModelForCausalLM

from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import (
    InputsSeen,
    full_report,
    fused_experts,
    quantized_layers,
    refuse_shared,
)
from magr_gptq.app.quantizing.progress import StartsHeard
from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.toolkits.report import RunReport

UNREACHED = "no calibration token reached it, so the toolkit rounded it to nearest"
STARTS = "optimum.gptq.quantizer", r"Start quantizing block .* (\d+)/"


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, RunReport]:
    """Load, quantize on the windows, save; the seconds of quantize_model() and what became of every layer."""
    model = AutoModelForCausalLM.from_pretrained(job.model, **how_loaded(job, config))
    require_savable(model.config, job.engine)
    if job.magr is not None:
        refuse_shared(model)
    quantizer = GPTQQuantizer(**settings(job, windows, batch_size))
    start = time.perf_counter()
    with StartsHeard(*STARTS, progress), InputsSeen(model) as seen:
        model = quantizer.quantize_model(model)
    seconds = time.perf_counter() - start
    # GPTQQuantizer.save would write zero points in another format than config.json says
    save(model, job.out)
    names = quantized_layers(model)
    fallbacks = {name: UNREACHED for name in names if name not in seen}
    return seconds, report(job, model, fallbacks)


def how_loaded(job: Job, config: Any) -> dict[str, Any]:
    """For `from_pretrained`: 16 bits, as the saved scales take the model's dtype."""
    dtype = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.float16
    where = {"device_map": "auto"} if torch.cuda.is_available() else {}
    return {"dtype": dtype, "trust_remote_code": job.trust_remote_code, **where}


def settings(job: Job, windows: list[list[int]], batch_size: int) -> dict[str, Any]:
    """What GPTQQuantizer and transformers' GPTQConfig are both made of."""
    rows = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
    return {
        "bits": job.bits, "group_size": job.group_size, "sym": job.sym, "desc_act": job.desc_act,
        # its own default, which needs groups and the columns in their own order
        "act_group_aware": job.group_size != -1 and not job.desc_act,
        "dataset": [{"input_ids": row, "attention_mask": [[1] * len(row[0])] * len(row)} for row in rows],
        **({} if job.magr is None else {"magr": job.toolkit_magr}), **job.options,
    }  # fmt: skip


def save(model: Any, out: str) -> None:
    """As transformers saves, but for the calibration's tokens, which would go into config.json."""
    saved = model.config.quantization_config
    if isinstance(saved, dict):
        saved["dataset"] = None
    else:
        saved.dataset = None
    model.save_pretrained(out)


def report(job: Job, model: Any, fallbacks: dict[str, str]) -> RunReport:
    """What became of every layer, those that optimum leaves in 16 bits included."""
    seen = RunReport() if job.magr is None else model.quantize_config.magr_report
    return full_report(job, seen, quantized_layers(model), fallbacks, fused_experts(model))
