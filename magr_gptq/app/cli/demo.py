"""`magr-gptq demo`: plain GPTQ beside GPTQ with MagR, on a small Llama that the package ships."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from magr_gptq.app.cli.console import (
    console,
    errors_shown,
    make_folder,
    progress_bars,
    show_warning,
)
from magr_gptq.app.cli.quantize import check_grid, show_event
from magr_gptq.app.inputs import find_model, local_folder
from magr_gptq.app.quantizing.engines import DEFAULT_ENGINE, ENGINES, find_engine
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.output import output_folder
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.scoring import score
from magr_gptq.errors import InputError

BITS = (4, 3, 2)
METHODS: dict[str, dict[str, Any] | None] = {"GPTQ": None, "GPTQ+MagR": {}}
CALIBRATION_WINDOWS, SCORED_WINDOWS, WINDOW = 96, 128, 256
OUT, LOG, RESULTS = Path("magr-demo"), "demo.log", "results.json"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: str
    bits: int
    group_size: int | None
    seconds: float | None
    perplexity: float
    megabytes: float


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints, the log and results.json.")] = OUT,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale; -1 is the whole row.")] = -1,
    model: Annotated[
        str | None, typer.Option(help="Another model folder or hub id, instead of the shipped Llama.")
    ] = None,
) -> None:
    """Compare GPTQ and GPTQ+MagR at 4, 3 and 2 bits: quantize, save, load elsewhere, score."""
    with errors_shown():
        find_engine(DEFAULT_ENGINE)
        check_grid(4, group_size)
        chosen = str(local_folder(find_model(model))) if model else shipped_model()
        folder = own_folder(out)
        rows = run(chosen, group_size, folder)
        console.print(table(rows))
        console.print(f"Checkpoints, log and {RESULTS} are in {escape(str(folder))}", soft_wrap=True)


def shipped_model() -> str:
    """The folder of the Llama in the package."""
    folder = Path(str(files("magr_gptq.app") / "demo" / "model"))
    if not (folder / "config.json").is_file():
        raise InputError(f"this installation lacks the demo model ({folder}); give one with --model")
    return str(folder)


def shipped_text(name: str) -> Path:
    """A text file in the package."""
    return Path(str(files("magr_gptq.app") / "demo" / "text" / name))


def own_folder(path: Path) -> Path:
    """The output folder, new, empty, or left by an earlier demo, whose files are then replaced."""
    folder = make_folder(path)
    if any(folder.iterdir()) and not (folder / LOG).is_file():
        raise InputError(f"the output folder {folder} holds other files; name another --out")
    for bits in BITS:
        for method in METHODS:
            shutil.rmtree(checkpoint(folder, bits, method), ignore_errors=True)
    (folder / LOG).write_text("")
    return folder


def checkpoint(folder: Path, bits: int, method: str) -> Path:
    """Where a quantized model is saved."""
    return folder / f"{method.lower().replace('+', '-')}-{bits}bit"


def run(model: str, group_size: int, folder: Path) -> list[Row]:
    """Every row of the table, under progress bars; they end up in results.json, too."""
    with progress_bars() as bars, Worker(folder / LOG) as worker, ThreadPoolExecutor(1) as scorer:
        overall = bars.add_task("demo", total=1 + len(BITS) * len(METHODS))
        step = bars.add_task("", total=None)

        def scored(path: str, engine: str, **made: Any) -> Row:
            row = Row(**made, perplexity=perplexity(path, engine, worker.log), megabytes=megabytes(path))
            bars.advance(overall)
            bars.console.print(f"{row.method}, {row.bits} bits: perplexity {row.perplexity:.2f}")
            return row

        # a checkpoint is scored while the next one is made: neither keeps more than a core busy
        plain = {"method": "unquantized", "bits": 16, "group_size": None, "seconds": None}
        waiting = [scorer.submit(scored, model, "transformers", **plain)]
        for job, method in jobs(model, group_size, folder):
            seconds = quantize(job, f"{method}, {job.bits} bits", worker, bars, step)
            made = {"method": method, "bits": job.bits, "group_size": group_size, "seconds": seconds}
            waiting.append(scorer.submit(scored, job.out, ENGINES[job.engine].loader, **made))
        bars.reset(step, description="scoring", total=None)
        rows = [future.result() for future in waiting]
        bars.remove_task(step)
    (folder / RESULTS).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return rows


def jobs(model: str, group_size: int, folder: Path) -> Iterator[tuple[Job, str]]:
    """Every number of bits by every method."""
    for bits in BITS:
        for method, magr in METHODS.items():
            yield Job(
                model=model, out=str(checkpoint(folder, bits, method)), bits=bits, group_size=group_size,
                calibration=str(shipped_text("calibration.txt")), samples=CALIBRATION_WINDOWS, seqlen=WINDOW,
                magr=magr,
            ), method  # fmt: skip


def quantize(job: Job, name: str, worker: Worker, bars: Progress, step: TaskID) -> float:
    """Quantize and save; the seconds that the toolkit took."""
    bars.reset(step, description=name, total=None)
    with output_folder(Path(job.out)) as unfinished:
        outcome = worker.quantize(
            replace(job, out=str(unfinished)), partial(show_event, bars, step, f"{name}: ")
        )
    if outcome.warning:
        show_warning(f"{name}, not as intended: {outcome.warning}")
    return outcome.seconds


def perplexity(path: str, engine: str, log: Path) -> float:
    """Of the shipped evaluation text, in a fresh process."""
    text = shipped_text("evaluation.txt")
    return float(score(path, text, engine=engine, seqlen=WINDOW, limit=SCORED_WINDOWS, log=log)["perplexity"])


def megabytes(folder: str) -> float:
    """The size of the weights' files."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6


def table(rows: list[Row]) -> Table:
    """The rows as people read them."""
    shown = Table(title="Perplexity on held-out text, lower is better")
    shown.add_column("method")
    for heading in ("bits", "group", "perplexity", "file size", "quantization"):
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(
            row.method,
            str(row.bits),
            "" if row.group_size is None else str(row.group_size),
            f"{row.perplexity:.2f}",
            f"{row.megabytes:.1f} MB",
            "" if row.seconds is None else f"{row.seconds:.1f} s",
            end_section=row.method != "GPTQ",
        )
    return shown
