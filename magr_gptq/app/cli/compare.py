"""`magr-gptq compare`: RTN, GPTQ and MagR side by side on one model, and a report on them."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from magr_gptq.app.cli.options import CUT_HELP, Cut, EngineName, PositiveScales
from magr_gptq.app.cli.quantize import check_grid
from magr_gptq.app.comparing.comparison import LOGS, Comparison, Request, owned
from magr_gptq.app.comparing.methods import METHODS, PLANNED, job_fields
from magr_gptq.app.comparing.plan import Grid
from magr_gptq.app.comparing.progress import Watcher
from magr_gptq.app.comparing.recipe import Recipe, load_recipe
from magr_gptq.app.comparing.run import run_cells
from magr_gptq.app.console import (
    console,
    errors_shown,
    make_folder,
)
from magr_gptq.app.inputs import find_model, local_folder
from magr_gptq.app.quantizing.engines import DEFAULT_ENGINE, find_engine, require_able
from magr_gptq.app.text import windows_in_words
from magr_gptq.errors import InputError

BITS, GROUP_SIZES, DEFAULT_METHODS = (4, 3, 2), (128,), ("gptq", "magr")
INTERRUPTED = 130
# a repetition needs none of them
TRANSIENT = ("force", "quiet", "devices")


def compare(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the cells and the report.", show_default=False)],
    model: Annotated[
        str | None, typer.Argument(help="Model folder or hub id; a recipe names its own.", show_default=False)
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A published experiment, as a JSON file.")] = None,
    bits: Annotated[str | None, typer.Option(help="Bits per weight, 4,3,2 if left out.")] = None,
    group_size: Annotated[
        str | None, typer.Option(help="Weights that share a scale, such as -1,128; 128 if left out.")
    ] = None,
    avg_bits: Annotated[
        str | None, typer.Option(help="Also bits by layer, so many a weight on average, such as 2.5,3.5.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(METHODS)}; gptq,magr if left out.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Text: a .txt, .jsonl or .parquet file, wikitext2, c4, ptb, or a hub id."),
    ] = None,
    evaluate: Annotated[str | None, typer.Option(help="Texts to score, with commas between.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Zero-shot tasks of lm-eval, such as arc_easy,piqa, or .yaml files.")
    ] = None,
    engine: EngineName = DEFAULT_ENGINE,
    sym: Annotated[
        bool | None, typer.Option(help="Symmetric grid, without zero points; the default.")
    ] = None,
    positive_scales: PositiveScales = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Calibration windows, 128 if left out.")] = None,
    seqlen: Annotated[
        int | None, typer.Option(min=16, help="Tokens a window, up to the model's limit; 2048 if left out.")
    ] = None,
    cut: Annotated[Cut | None, typer.Option(help=CUT_HELP, show_default="tokenizer")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Score so many windows only, spread evenly over a text.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Calibrations to average over.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="GPUs to share the cells out to, such as 0,1.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure finished cells again.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Quantize MODEL in every way asked for, score every checkpoint, and write a report.

    What is finished is kept: the same command goes on where it was stopped.
    """
    with errors_shown():
        find_engine(engine)
        if find_spec("matplotlib") is None:
            raise InputError("compare draws with matplotlib; pip install 'magr-gptq[eval]'")
        given: dict[str, Any] = {"sym": sym, "samples": samples, "seqlen": seqlen, "limit": limit}
        given["cut"] = cut and cut.value
        lists = {"bits": bits, "group_size": group_size, "methods": methods, "avg_bits": avg_bits}
        base = (
            _from_recipe(load_recipe(recipe), model)
            if recipe
            else _from_options(model, calibration, evaluate)
        )
        base |= {name: value for name, value in given.items() if value is not None}
        base["grids"] = _choose_grids(base.pop("grids", None), lists)
        compared = list(dict.fromkeys(grid.method for grid in base["grids"]))
        if positive_scales and all(job_fields(method)["magr"] is None for method in compared):
            raise InputError(
                f"--positive-scales sets MagR's grids, and {', '.join(compared)} have none; leave it out"
            )
        for method in compared:
            asked = job_fields(method)
            require_able(
                engine, rounding=asked["rounding"], magr=asked["magr"] is not None, mixed=method == PLANNED
            )
        if recipe and (calibration or evaluate):
            base["evaluate"] = _texts(calibration, evaluate)
        if tasks is not None:
            base["tasks"] = _split(tasks)
        request = Request(
            **base,
            engine=engine,
            positive_scales=positive_scales,
            seeds=seeds,
            command=_command(context),
            folder=str(local_folder(base["model"])),
        )
        with owned(make_folder(out)) as folder:
            code = _compare(Comparison(request, folder), _parse_devices(devices), force, quiet)
    raise typer.Exit(code)


def _compare(comparison: Comparison, devices: list[str | None], force: bool, quiet: bool) -> int:
    """Measure what remains, report on all of it; the exit code."""
    remaining = comparison.remaining(force)
    if remaining:
        comparison.check_tasks()
    log = comparison.folder / "compare.log"
    done = len(comparison.cells) - len(remaining)
    watcher = Watcher(len(comparison.cells), done, len(devices), log, console, quiet)
    code = 0
    try:
        with watcher.bars:
            run_cells(comparison.run(), remaining, devices, watcher)
    except KeyboardInterrupt:
        code = INTERRUPTED
    verdict = comparison.report()
    failed = [cell for cell, record in comparison.records().items() if "error" in record]
    if not quiet:
        _show(comparison, verdict.sentence)
    if failed:
        console.print(f"[red]{len(failed)} cells failed[/]; their errors are in the report", soft_wrap=True)
        console.print(f"What was printed is in {comparison.folder / LOGS}", soft_wrap=True, markup=False)
    if code:
        console.print("Stopped. Finished cells are kept; the same command goes on.")
    return code or (1 if failed else 0)


def _show(comparison: Comparison, sentence: str) -> None:
    from magr_gptq.app.comparing import table
    from magr_gptq.app.comparing.results import (
        accuracy_tables,
        beginnings,
        divergence_tables,
        overlaps,
        perplexity_tables,
    )

    records, published = comparison.records(), comparison.request.published
    for entry in (
        *perplexity_tables(records, published),
        *divergence_tables(records),
        *accuracy_tables(records, published),
    ):
        console.print(table.terminal(entry))
    begins = windows_in_words(comparison.request.cut, beginnings(records))
    console.print(f"Windows are {begins}.", markup=False, soft_wrap=True)
    for overlap in overlaps(records):
        console.print(f"{overlap}.", markup=False, soft_wrap=True)
    console.print(sentence, style="bold", markup=False)
    console.print(f"Report: {comparison.folder / 'report.html'}", soft_wrap=True, markup=False)


def _from_options(model: str | None, calibration: str | None, evaluate: str | None) -> dict[str, Any]:
    if model is None:
        raise InputError("name a MODEL to compare on, or a --recipe")
    return {"model": find_model(model), "evaluate": _texts(calibration, evaluate)}


def _from_recipe(recipe: Recipe, model: str | None) -> dict[str, Any]:
    return {
        "model": find_model(model or recipe.model), "evaluate": recipe.evaluate, "grids": recipe.grids,
        "sym": recipe.sym, "samples": recipe.samples, "seqlen": recipe.seqlen, "tasks": recipe.tasks,
        "cut": recipe.cut,
        "published": recipe.published, "ranks": recipe.ranks, "title": recipe.title, "notes": recipe.notes,
    }  # fmt: skip


def _texts(calibration: str | None, evaluate: str | None) -> dict[str, list[str]]:
    if not calibration or not evaluate:
        raise InputError(
            "both --calibration and --evaluate are needed: a text to calibrate on, and texts to score"
        )
    return {calibration: _split(evaluate)}


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _split(text)]
    except ValueError as error:
        raise InputError(f"{option} {text}: give whole numbers with commas between") from error


def _averages(text: str) -> list[float]:
    try:
        return [float(part) for part in _split(text)]
    except ValueError as error:
        raise InputError(f"--avg-bits {text}: give numbers with commas between, such as 2.5,3.5") from error


def _choose_grids(recipe: list[Grid] | None, lists: dict[str, str | None]) -> list[Grid]:
    """Every combination of the lists; of a recipe, the cells that are in them."""
    bits = _numbers("--bits", lists["bits"]) if lists["bits"] else None
    groups = _numbers("--group-size", lists["group_size"]) if lists["group_size"] else None
    methods = _split(lists["methods"]) if lists["methods"] else None
    for method in methods or ():
        job_fields(method)
    for width in bits or BITS:
        for group in groups or GROUP_SIZES:
            check_grid(width, group)
    if recipe is None:
        chosen = [
            Grid(method, width, group)
            for group in groups or GROUP_SIZES
            for width in bits or BITS
            for method in methods or DEFAULT_METHODS
        ]
    else:
        wanted = ((methods, "method"), (bits, "bits"), (groups, "group_size"))
        chosen = [g for g in recipe if all(few is None or getattr(g, name) in few for few, name in wanted)]
    chosen += [
        Grid(PLANNED, average, group)
        for group in groups or GROUP_SIZES
        for average in _averages(lists["avg_bits"] or "")
    ]
    if not chosen:
        raise InputError("the recipe has no cell with those --bits, --group-size and --methods")
    return chosen


def _parse_devices(text: str | None) -> list[str | None]:
    if text is None:
        return [None]
    numbers = _numbers("--devices", text)
    present = torch.cuda.device_count()
    if not numbers or any(not 0 <= number < present for number in numbers):
        raise InputError(f"--devices {text}: there are {present} GPUs here, numbered from 0")
    return [str(number) for number in numbers]


def _command(context: typer.Context) -> str:
    """The command line that asks for the same."""
    parts = ["magr-gptq", "compare"]
    # the model comes first
    for parameter in sorted(context.command.params, key=lambda found: found.param_type_name):
        value = context.params.get(parameter.name or "")
        if value is None or value == parameter.default or parameter.name in TRANSIENT:
            continue
        text = str(getattr(value, "value", value))
        if parameter.param_type_name == "argument":
            parts.append(text)
        elif isinstance(value, bool):
            parts.append(f"--{'' if value else 'no-'}{(parameter.name or '').replace('_', '-')}")
        else:
            parts += [f"--{(parameter.name or '').replace('_', '-')}", text]
    return shlex.join(parts)
