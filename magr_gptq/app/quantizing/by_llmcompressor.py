"""Quantize a model with llm-compressor into compressed-tensors, on a GPU where there is one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from llmcompressor.entrypoints.oneshot import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from loguru import logger
from transformers import AutoModelForCausalLM

from magr_gptq.app.planning.written import config_groups_of, weight_scheme
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import full_report, fused_experts, refuse_shared
from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.errors import InputError
from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier
from magr_gptq.toolkits.report import RunReport

NOT_FACTORIZED = "its Hessian could not be inverted, so the toolkit rounded it to nearest"


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, RunReport]:
    """Load, quantize on the windows, save; the seconds of oneshot() and what became of every layer."""
    dtype = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.float16
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=dtype, trust_remote_code=job.trust_remote_code
    )
    require_savable(model.config, job.engine)
    _refuse_tails(model, job)
    if job.magr is not None:
        refuse_shared(model)
    modifier = _modifier(job)
    rows = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(row) for row in windows]})
    listener = logger.add(_Blocks(progress), level="INFO", format="{message}")
    start = time.perf_counter()
    model = oneshot(
        model=model, dataset=rows, recipe=[modifier], batch_size=batch_size,
        num_calibration_samples=len(rows), max_seq_length=len(windows[0]), shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    logger.remove(listener)
    model.save_pretrained(job.out, save_compressed=True)
    return seconds, _report(job, model, modifier)


def _modifier(job: Job) -> Any:
    """The modifier of this method, for every linear layer but the head."""
    every = {"targets": ["Linear"], "weights": weight_scheme(job.bits, job.group_size, job.sym)}
    groups = {"group_0": every} if job.widths is None else config_groups_of(job.widths, job.sym)
    scheme = {"config_groups": groups, "ignore": ["lm_head"], **job.options}
    if job.magr is not None:
        return MagRGPTQModifier(magr=job.toolkit_magr, **scheme)
    return GPTQModifier(**scheme) if job.rounding == "gptq" else QuantizationModifier(**scheme)


def _refuse_tails(model: torch.nn.Module, job: Job) -> None:
    """InputError where groups don't divide a layer, which llm-compressor finds out after calibration."""
    for name, module in model.named_modules():
        group_size = job.width_of(name)[1]
        if isinstance(module, torch.nn.Linear) and group_size != -1 and module.in_features % group_size:
            raise InputError(
                f"--group-size {group_size}: {name} has {module.in_features} columns, and llm-compressor "
                "takes whole groups; give a size that divides them, or another --engine"
            )


class _Blocks:
    """Hears from llm-compressor's log in which block a layer is quantized."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def __call__(self, message: str) -> None:
        found = re.match(r"Quantizing \d+ module\(s\): .*?\.(\d+)\.", message)
        if found:
            self._progress(int(found[1]))


def _report(job: Job, model: torch.nn.Module, modifier: Any) -> RunReport:
    names = [name for name, module in model.named_modules() if hasattr(module, "quantization_scheme")]
    seen = RunReport() if job.magr is None else modifier.magr_report
    failed = (
        {}
        if job.rounding == "nearest"
        else dict.fromkeys(modifier._rtn_fallback_module_names, NOT_FACTORIZED)
    )
    return full_report(job, seen, names, failed, fused_experts(model))
