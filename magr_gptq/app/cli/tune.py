"""`magr-gptq tune`: fit a finished checkpoint's scales, norms and biases to the unquantized model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from magr_gptq.app.cli.options import CalibrationText, Cut, Samples, Seed, SeqLen, WindowCut
from magr_gptq.app.console import console, errors_shown, progress_bars
from magr_gptq.app.inputs import find_model
from magr_gptq.app.quantizing.output import leftovers, output_folder
from magr_gptq.app.text import find_source, windows_in_words
from magr_gptq.app.tuning.checkpoint import read_checkpoint
from magr_gptq.app.tuning.job import Tuned, TuneJob
from magr_gptq.app.tuning.state import state_file
from magr_gptq.app.tuning.worker import run
from magr_gptq.errors import InputError

LOG, RECORD, CARD = "tune.log", "tune.json", "README.md"


def tune(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder with packed weights, of any toolkit.", show_default=False)
    ],
    original: Annotated[
        str, typer.Option(help="The unquantized model: a folder or hub id.", show_default=False)
    ],
    calibration: CalibrationText,
    out: Annotated[Path, typer.Option(help="Folder for the result; new or empty.", show_default=False)],
    samples: Samples = 128,
    seqlen: SeqLen = 2048,
    seed: Seed = 0,
    cut: WindowCut = Cut.tokenizer,
) -> None:
    """Fit CHECKPOINT's scales, norms and biases to the unquantized model; its codes stay."""
    with errors_shown():
        if find_spec("transformers") is None:
            raise InputError(
                "tune runs the models in transformers, which is missing; pip install transformers"
            )
        target = out.expanduser().absolute()
        job = TuneJob(
            checkpoint=str(read_checkpoint(checkpoint).folder), original=find_model(original),
            out=str(target), state=str(state_file(target)), calibration=str(find_source(calibration)),
            samples=samples, seqlen=seqlen, seed=seed, cut=cut.value,
        )  # fmt: skip
        show(job, perform(job))


def perform(job: TuneJob) -> Tuned:
    """Tune under a progress bar; the output folder appears with everything in it, or not at all."""
    out, state = Path(job.out), Path(job.state)
    for folder in leftovers(out):
        console.print(
            f"{escape(str(folder))} is of a run that was killed, or is still at work; it is left alone",
            soft_wrap=True,
        )
    log = out.with_name(f"{out.name}.{LOG}")
    with output_folder(out) as folder:
        if state.exists():
            console.print(f"Going on from {escape(str(state))}", soft_wrap=True)
        log.write_text("")
        try:
            with progress_bars() as bars:
                bar = bars.add_task("starting", total=None)
                tuned = run(replace(job, out=str(folder)), log, bars, bar)
        except (InputError, KeyboardInterrupt):
            log.unlink(missing_ok=True)
            raise
        if (folder / CARD).is_file():
            with (folder / CARD).open("a", encoding="utf-8") as card:
                card.write(f"\n## Tuned\n\nBy `magr-gptq tune`, with the codes as they were: {tuned.says}.\n")
        (folder / RECORD).write_text(json.dumps({"job": asdict(job), **asdict(tuned)}, indent=1) + "\n")
        log.rename(folder / LOG)
    state.unlink(missing_ok=True)
    return tuned


def show(job: TuneJob, tuned: Tuned) -> None:
    """What was done, how much nearer the predictions are, and where the result lies."""
    if tuned.seqlen < job.seqlen:
        console.print(f"Windows of {tuned.seqlen} tokens: the model takes no more than that.")
    begins = windows_in_words(job.cut, [tuned.beginning])
    console.print(f"Windows are {begins}.", markup=False, soft_wrap=True)
    if tuned.repeated:
        console.print(f"{tuned.repeated}.", markup=False, soft_wrap=True)
    console.print(f"Tuned in {tuned.seconds:.1f} s: {tuned.says}", soft_wrap=True)
    console.print(
        f"Saved to {escape(job.out)} (all about it in {RECORD}, log in {LOG}); it loads as before",
        soft_wrap=True,
    )
