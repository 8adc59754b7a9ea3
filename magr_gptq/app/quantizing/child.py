"""The process that quantizes: answers jobs with outcomes, as `magr_gptq.app.processes` has it.

A process of its own, because toolkits print, write ./logs, take their settings from environment
variables and leave threads behind. `magr_gptq.app.quantizing.worker` starts it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from magr_gptq.app.inputs import local_folder, read_model
from magr_gptq.app.processes import serve
from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.savable import require_savable
from magr_gptq.app.quantizing.space import check_space
from magr_gptq.errors import InputError
from magr_gptq.toolkits import enabled
from magr_gptq.toolkits.report import RunReport
from magr_score.process import Tell

TOKENS_AT_ONCE = 2048


def perform(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Check what was given, prepare the calibration text, quantize, save."""
    job = Job(**request)
    tell("stage", text="checking the model")
    folder = local_folder(job.model, allow_pickle=job.allow_pickle, trust_remote_code=job.trust_remote_code)
    # on a GPU finished layers are kept on disk until they are saved
    copies = 2 if torch.cuda.is_available() else 1
    check_space(Path(job.out), folder, job.bits, job.group_size, copies)
    model = read_model(folder, job.trust_remote_code)
    tell("stage", text="reading the calibration text")
    windows = model.windows(
        job.calibration, samples=job.samples, seqlen=job.seqlen, seed=job.seed, cut=job.cut
    )
    rows = windows.rows
    _check_length(job.engine, len(rows[0]))
    require_savable(model.tokenizer, job.engine)
    seconds, report = _quantize(replace(job, model=str(folder)), model.config, rows, tell)
    if not Path(job.out, "tokenizer_config.json").exists():
        # GPTQModel saves it by itself, under a class name that older transformers know
        model.tokenizer.save_pretrained(job.out)
    outcome = _outcome(job, seconds, len(rows[0]), report)
    outcome = replace(outcome, beginning=model.beginning(job.cut), overlap=windows.overlap)
    # stderr is the run's log
    told = (outcome.overlap or "", outcome.warning or "")
    print(json.dumps(outcome.totals, indent=1), *told, sep="\n", file=sys.stderr)
    return asdict(outcome)


def _check_length(engine: str, tokens: int) -> None:
    """InputError where the toolkit would leave out every window."""
    least = ENGINES[engine].least_tokens
    if tokens < least:
        raise InputError(
            f"{engine} leaves out calibration windows of fewer than {least} tokens, and these have {tokens}; "
            "give a larger --seqlen, or a model that takes longer texts"
        )


def _quantize(job: Job, config: Any, windows: list[list[int]], tell: Tell) -> tuple[float, RunReport]:
    layers = config.get_text_config().num_hidden_layers

    def progress(done: int) -> None:
        tell("layers", done=done, total=layers)

    tell("stage", text="loading the model")
    engine = ENGINES[job.engine]
    with enabled(engine.toolkit):
        quantize = engine.quantize
        progress(0)
        batch_size = max(1, TOKENS_AT_ONCE // len(windows[0]))
        seconds, report = quantize(job, config, windows, batch_size, progress)
    progress(layers)
    return seconds, report


def _outcome(job: Job, seconds: float, seqlen: int, report: RunReport) -> Outcome:
    names = ("torch", "transformers", *ENGINES[job.engine].distributions, "magr-gptq")
    return Outcome(
        seconds, seqlen, {name: version(name) for name in names},
        summary=None if job.magr is None else report.summary(), warning=report.warning(),
        totals=report.totals(), layers=report.to_dict(),
    )  # fmt: skip


if __name__ == "__main__":
    serve(perform)
