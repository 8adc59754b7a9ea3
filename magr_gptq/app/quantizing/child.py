"""The process that quantizes: reads jobs from stdin, answers with events on stdout, one JSON a line.

A process of its own, because toolkits print, write ./logs, take their settings from environment
variables and leave threads behind. Their output goes to stderr; `magr_gptq.app.quantizing.worker` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from typing import Any, TextIO

from magr_gptq.app.quantizing import loading
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.space import check_space
from magr_gptq.app.text import load_text, random_windows
from magr_gptq.errors import InputError
from magr_gptq.toolkits import TOOLKITS, enabled
from magr_gptq.toolkits.report import RunReport

Tell = Callable[..., None]

TOKENS_AT_ONCE = 2048
MODULES = {
    "gptqmodel": "magr_gptq.app.quantizing.by_gptqmodel",
    "auto-gptq": "magr_gptq.app.quantizing.by_autogptq",
}


def main() -> None:
    """Answer every job with `done` or with `error`."""
    answers = _keep_stdout()
    busy = threading.Event()

    def tell(event: str, **values: Any) -> None:
        print(json.dumps({"event": event, **values}), file=answers, flush=True)

    for line in _lines(busy):
        try:
            outcome = perform(Job.from_json(line), tell)
            busy.clear()
            tell("done", **asdict(outcome))
        except InputError as error:
            busy.clear()
            tell("error", message=str(error), input=True)
        except Exception as error:
            traceback.print_exc()
            busy.clear()
            tell("error", message=f"{type(error).__name__}: {error}", input=False)


def perform(job: Job, tell: Tell) -> Outcome:
    """Check what was given, prepare the calibration text, quantize, save."""
    tell("stage", text="checking the model")
    folder = loading.local_folder(job)
    check_space(Path(job.out), folder, job.bits, job.group_size)
    config, tokenizer = loading.load_model_files(str(folder), job.trust_remote_code)
    loading.check_all_weights(folder, config)
    tell("stage", text="reading the calibration text")
    seqlen = min(job.seqlen, loading.model_limit(config))
    windows = random_windows(
        tokenizer(load_text(job.calibration))["input_ids"], job.samples, seqlen, job.seed
    )
    loading.check_vocabulary(windows, config)
    seconds, report = _quantize(replace(job, model=str(folder)), config, windows, tell)
    if not Path(job.out, "tokenizer_config.json").exists():
        # GPTQModel saves it by itself, under a class name that older transformers know
        tokenizer.save_pretrained(job.out)
    outcome = _outcome(job, seconds, seqlen, report)
    # stderr is the run's log
    print(json.dumps(outcome.totals, indent=1), outcome.warning or "", sep="\n", file=sys.stderr)
    return outcome


def _quantize(job: Job, config: Any, windows: list[list[int]], tell: Tell) -> tuple[float, RunReport]:
    layers = config.get_text_config().num_hidden_layers

    def progress(done: int) -> None:
        tell("layers", done=done, total=layers)

    tell("stage", text="loading the model")
    with enabled(job.engine):
        engine = importlib.import_module(MODULES[job.engine])
        progress(0)
        batch_size = max(1, TOKENS_AT_ONCE // len(windows[0]))
        seconds, report = engine.quantize(job, config, windows, batch_size, progress)
    progress(layers)
    return seconds, report


def _outcome(job: Job, seconds: float, seqlen: int, report: RunReport) -> Outcome:
    names = ("torch", "transformers", TOOLKITS[job.engine].distribution, "magr-gptq")
    return Outcome(
        seconds, seqlen, {name: version(name) for name in names},
        summary=None if job.magr is None else report.summary(), warning=report.warning(),
        totals=report.totals(), layers=report.to_dict(),
    )  # fmt: skip


def _lines(busy: threading.Event) -> Iterator[str]:
    """The lines of stdin. Where it ends amid a job, the caller was killed, and so ends this process."""
    lines: Queue[str | None] = Queue()

    def read() -> None:
        for line in sys.stdin:
            busy.set()
            lines.put(line)
        lines.put(None)
        if busy.is_set():
            print("the calling process is gone", file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


def _keep_stdout() -> TextIO:
    """The real stdout, for answers alone; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
