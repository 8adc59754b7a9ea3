"""The process that quantizes: reads jobs from stdin, answers with events on stdout, one JSON a line.

A process of its own, because toolkits print, write ./logs, take their settings from environment
variables and leave threads behind. Their output goes to stderr; `magr_gptq.engines.run` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from magr_gptq.engines.job import Job, Outcome
from magr_gptq.errors import InputError
from magr_gptq.text import load_text, random_windows
from magr_gptq.toolkits import TOOLKITS, enabled

Tell = Callable[..., None]

TOKENS_AT_ONCE = 2048
MODULES = {"gptqmodel": "magr_gptq.engines.gptqmodel", "auto-gptq": "magr_gptq.engines.autogptq"}


def main() -> None:
    """Answer every job with `done` or with `error`."""
    answers = _keep_stdout()

    def tell(event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=answers, flush=True)

    for line in sys.stdin:
        try:
            tell("done", **asdict(perform(Job.from_json(line), tell)))
        except InputError as error:
            tell("error", message=str(error), input=True)
        except Exception as error:
            traceback.print_exc()
            tell("error", message=f"{type(error).__name__}: {error}", input=False)


def perform(job: Job, tell: Tell) -> Outcome:
    """Prepare the calibration text, quantize, save."""
    tell("stage", text="reading the calibration text")
    text = load_text(job.calibration)
    config, tokenizer = _load_model_files(job.model)
    seqlen = min(job.seqlen, _model_limit(config))
    windows = random_windows(tokenizer(text)["input_ids"], job.samples, seqlen, job.seed)
    layers = config.get_text_config().num_hidden_layers
    tell("stage", text="loading the model")

    def progress(done: int) -> None:
        tell("layers", done=done, total=layers)

    with enabled(job.engine):
        engine = importlib.import_module(MODULES[job.engine])
        tell("layers", done=0, total=layers)
        batch_size = max(1, TOKENS_AT_ONCE // seqlen)
        seconds, report = engine.quantize(job, config, windows, batch_size, progress)
    tell("layers", done=layers, total=layers)
    if not Path(job.out, "tokenizer_config.json").exists():
        # GPTQModel saves it by itself, under a class name that older transformers know
        tokenizer.save_pretrained(job.out)
    names = ("torch", "transformers", TOOLKITS[job.engine].distribution)
    outcome = Outcome(seconds, seqlen, {name: version(name) for name in names})
    if job.magr is None:
        return outcome
    return Outcome(**{**asdict(outcome), "summary": report.summary(), "layers": report.to_dict()})


def _keep_stdout() -> TextIO:
    """The real stdout, for answers alone; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _load_model_files(model: str) -> tuple[Any, Any]:
    """The model's config and tokenizer, from a folder or the hub."""
    from transformers import AutoConfig, AutoTokenizer

    where = "the model folder" if Path(model).is_dir() else "no such folder here, and the hub model"
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(f"{where} {model} has no config to load: {_first_line(error)}") from error
    if getattr(config, "quantization_config", None):
        raise InputError(f"{model} is quantized already; give the unquantized model")
    try:
        return config, AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(f"{where} {model} has no tokenizer to load: {_first_line(error)}") from error


def _model_limit(config: Any) -> int:
    """The longest context that the model's config allows."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    main()
