"""Quantize a model with GPTQModel, on a GPU where there is one, else on the CPU."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.models.auto import SUPPORTED_MODELS
from gptqmodel.quantization.config import Fallback

from magr_gptq.app.planning.written import dynamic_of
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.layers import full_report, quantized_layers, refuse_shared
from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.errors import InputError
from magr_gptq.toolkits.report import RunReport

OFFLOAD = ".offload"


def quantize(
    job: Job, config: Any, windows: list[list[int]], batch_size: int, progress: Callable[[int], None]
) -> tuple[float, RunReport]:
    """Load, quantize on the windows, save; the seconds of quantize() and what became of every layer."""
    on_gpu = torch.cuda.is_available()
    dtype = config.dtype if config.dtype in (torch.float16, torch.bfloat16) else torch.float16
    model = _load(job, config, dtype, on_gpu)
    # GPTQModel 7.6 and 7.7 add keys to the config of Gemma 3 and 4 that transformers can't save
    require_savable(model.model.config, job.engine)
    if job.magr is not None:
        refuse_shared(model.model)
    # called with layer_idx and submodule_finalized
    model.layer_callback = lambda **event: progress(event["layer_idx"] + 1)
    rows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows]
    start = time.perf_counter()
    model.quantize(rows, batch_size=batch_size, backend=BACKEND.AUTO if on_gpu else BACKEND.TORCH)
    seconds = time.perf_counter() - start
    if not on_gpu:
        _parameters_to(model.model, dtype)
    model.save(job.out)
    _forget_offload(Path(job.out))
    return seconds, _report(job, model)


def _load(job: Job, config: Any, dtype: torch.dtype, on_gpu: bool) -> Any:
    try:
        return _load_on_gpu(job, dtype) if on_gpu else _load_on_cpu(job)
    except ValueError as error:
        if config.model_type in SUPPORTED_MODELS:
            raise
        # GPTQModel looks for the layers of models that it doesn't list
        raise InputError(
            f"gptqmodel does not list {config.model_type!r} models, and found no layers in this one; "
            "its documentation has those that it can quantize"
        ) from error


def _report(job: Job, model: Any) -> RunReport:
    names = quantized_layers(model.model)
    # the log of the run names a layer by its block's number and its name in there
    by_place = {found[0]: name for name in names if (found := re.search(r"\.\d+\..+", name))}
    fallbacks = {}
    for row in model.quant_log:
        if job.rounding == "gptq" and "fallback" in row["loss"]:
            place = f".{row['layer']}.{row['module']}"
            fallbacks[by_place.get(place, place)] = _why(row)
    return full_report(job, model.quantize_config.magr_report, names, fallbacks)


def _why(row: dict[str, Any]) -> str:
    # "fallback(rtn): ..." where the toolkit never tried, "rtn fallback" where it tried and failed
    few = row["loss"].startswith("fallback(")
    cause = "too few calibration tokens reached it" if few else "its Hessian could not be inverted"
    return f"{cause}, so the toolkit rounded it to nearest"


def _load_on_gpu(job: Job, dtype: torch.dtype) -> Any:
    config = _quantize_config(job, **_offloading(job))
    return GPTQModel.load(
        job.model, quantize_config=config, dtype=dtype, trust_remote_code=job.trust_remote_code
    )


def _load_on_cpu(job: Job) -> Any:
    config = _quantize_config(job, device="cpu", offload_to_disk=False)
    # the calibration passes run in this dtype, and CPUs multiply float32 several times faster
    return GPTQModel.load(
        job.model, quantize_config=config, backend=BACKEND.TORCH, dtype=torch.float32,
        trust_remote_code=job.trust_remote_code,
    )  # fmt: skip


def _offloading(job: Job) -> dict[str, Any]:
    """Finished layers wait on disk: where space was checked, and where a killed run is looked for."""
    return {"offload_to_disk": True, "offload_to_disk_path": str(Path(job.out, OFFLOAD))}


def _forget_offload(folder: Path) -> None:
    """Remove what lay there for the toolkit's work, and its path from the saved configs."""
    if not (folder / OFFLOAD).is_dir():
        return
    shutil.rmtree(folder / OFFLOAD)
    for name in ("quantize_config.json", "config.json"):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content.get("quantization_config", content).get("meta", {}).pop("offload_to_disk_path", None)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _quantize_config(job: Job, **options: Any) -> Any:
    if -1 in job.group_sizes or job.desc_act:
        # group-aware reordering, on by default, needs groups and the columns in their own order
        options["act_group_aware"] = False
    if job.magr is not None:
        options["magr"] = job.toolkit_magr
    elif job.rounding == "nearest":
        # the toolkit rounds layers of fewer samples to nearest: that is, all of them
        options["fallback"] = Fallback(threshold=float("inf"))
    if job.widths is not None:
        options["dynamic"] = dynamic_of(job.widths, (job.bits, job.group_size))
    return QuantizeConfig(
        bits=job.bits, group_size=job.group_size, sym=job.sym, desc_act=job.desc_act, lm_head=job.head,
        **{**options, **job.options},
    )  # fmt: skip


def _parameters_to(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """What was not quantized goes back to 16 bits; packed weights and their scales are buffers."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
