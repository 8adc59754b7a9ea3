"""`magr-gptq quantize`: one model to one GPTQ checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from magr_gptq.app.cli.options import (
    AllowPickle,
    CalibrationText,
    Cut,
    ForRuntime,
    PositiveScales,
    Samples,
    Seed,
    SeqLen,
    TrustRemoteCode,
    WindowCut,
)
from magr_gptq.app.cli.sizing import AvgBits, GroupSizes, Head, Size, Sizing
from magr_gptq.app.console import (
    STRICT,
    console,
    errors_shown,
    progress_bars,
    show_event,
    show_warning,
)
from magr_gptq.app.inputs import find_model
from magr_gptq.app.quantizing.card import model_card
from magr_gptq.app.quantizing.engines import (
    DEFAULT_ENGINE,
    ENGINES,
    find_engine,
    loading,
    require_able,
)
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.output import leftovers, output_folder
from magr_gptq.app.quantizing.runtimes import RUNTIMES, Asked, Road, choose_road
from magr_gptq.app.quantizing.verifying import Loaded, require_loader, try_loaders
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.text import find_source, windows_in_words
from magr_gptq.app.tuning.job import Tuned
from magr_gptq.app.tuning.worker import tune_in_place
from magr_gptq.config import MagRConfig
from magr_gptq.errors import InputError

BITS = (2, 3, 4, 8)
# settings whose options have other names
OPTION_OF = {"mirror": "--positive-scales"}
LOG, RECORD, CARD = "quantize.log", "magr.json", "README.md"


class Rounding(str, Enum):
    """How weights are rounded; `rtn` is another word for nearest."""

    gptq = "gptq"
    nearest = "nearest"
    rtn = "rtn"


class Preset(str, Enum):
    """See `MagRConfig`."""

    default = "default"
    paper = "paper"


def quantize(
    model: Annotated[str, typer.Argument(help="Model folder or Hugging Face hub id.", show_default=False)],
    calibration: CalibrationText,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; new or empty.", show_default=False)],
    bits: Annotated[
        int | None, typer.Option(help="Bits per weight: 2, 3, 4 or 8; 4 if left out.", show_default=False)
    ] = None,
    avg_bits: AvgBits = None,
    size: Size = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Bits of each layer as in this file, which --avg-bits leaves as bits.json."),
    ] = None,
    group_size: Annotated[int, typer.Option(help="Weights that share a scale; -1 is the whole row.")] = 128,
    group_sizes: GroupSizes = None,
    head: Head = False,
    engine: Annotated[
        str | None,
        typer.Option(help=f"The toolkit that quantizes: {', '.join(ENGINES)}; {DEFAULT_ENGINE} if left out."),
    ] = None,
    runtime: ForRuntime = None,
    rounding: Annotated[
        Rounding, typer.Option("--rounding", "--method", help="GPTQ, or to nearest, also known as rtn.")
    ] = Rounding.gptq,
    magr: Annotated[bool, typer.Option(help="Reduce the weights' magnitudes before rounding.")] = True,
    preset: Annotated[
        Preset | None, typer.Option(help="MagR's settings: derived from bits and Hessian, or the paper's.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="The paper's penalty, in place of the derived.")] = None,
    beta: Annotated[float | None, typer.Option(help="Factor on the quantization step, up to 1.")] = None,
    refine: Annotated[
        int | None, typer.Option(help="Sweeps of coordinate descent after rounding; the paper's † has 30.")
    ] = None,
    search: Annotated[
        bool | None, typer.Option(help="Let every row choose its penalty and step; the default.")
    ] = None,
    positive_scales: PositiveScales = False,
    sym: Annotated[bool, typer.Option(help="Symmetric grid, without zero points.")] = True,
    desc_act: Annotated[bool, typer.Option(help="Round columns in order of activation size.")] = False,
    samples: Samples = 128,
    seqlen: SeqLen = 2048,
    seed: Seed = 0,
    cut: WindowCut = Cut.tokenizer,
    tune: Annotated[
        bool, typer.Option("--tune", help="Then fit scales, norms and biases to the unquantized model.")
    ] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            help="Load the result and compare its predictions with the file's weights; the default "
            "for small models. Large ones are loaded alone."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit status 3 where over 10 % of the layers weren't reduced.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Quantize MODEL with GPTQ and MagR into an ordinary GPTQ checkpoint."""
    with errors_shown():
        sizing = Sizing.of(bits, avg_bits, size, plan, group_sizes, head)
        bits = 4 if bits is None else bits
        check_grid(bits, group_size)
        if runtime is not None:
            asked = Asked(engine, bits, group_size, sym, desc_act)
            road = sizing.road(runtime, asked) if sizing else told_road(runtime, asked)
            engine, positive_scales = road.engine, positive_scales or needs_positive(runtime, magr)
        engine = engine or DEFAULT_ENGINE
        find_engine(engine)
        how = "gptq" if rounding is Rounding.gptq else "nearest"
        require_able(engine, rounding=how, magr=magr, desc_act=desc_act, mixed=sizing is not None)
        if verify and trust_remote_code:
            raise InputError("--verify runs no code of a model; leave out --verify or --trust-remote-code")
        if tune and (trust_remote_code or allow_pickle):
            raise InputError(
                "--tune runs no code of a model and loads no pickles; leave out --tune, or "
                "--trust-remote-code and --allow-pickle"
            )
        job = Job(
            model=find_model(model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code),
            out=str(out.expanduser().absolute()),
            calibration=str(find_source(calibration)),
            engine=engine, runtime=runtime, rounding=how,
            bits=bits, group_size=group_size, sym=sym, desc_act=desc_act,
            samples=samples, seqlen=seqlen, seed=seed, cut=cut.value,
            magr=magr_settings(
                magr, preset=preset.value if preset else None,
                alpha=alpha, beta=beta, refine=refine, search=search,
                mirror=False if positive_scales else None,
            ),
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, tune=tune,
        )  # fmt: skip
        job, outcome = run(job, verify, sizing)
        show(job, outcome)
        require_loader([Loaded(**found) for found in outcome.loaded], job.out)
        if strict and outcome.warning:
            raise typer.Exit(STRICT)


def told_road(runtime: str, asked: Asked) -> Road:
    """The road to a runtime, which is told."""
    road = choose_road(runtime, asked)
    sign = ", positive scales" if RUNTIMES[runtime].positive else ""
    console.print(f"For {runtime}: {asked.bits} bits by {road.engine}{sign} ({RUNTIMES[runtime].seen})")
    return road


def needs_positive(runtime: str, magr: bool) -> bool:
    """Whether mirrored grids must be left out for the runtime."""
    return magr and RUNTIMES[runtime].positive


def magr_settings(magr: bool, **options: Any) -> dict[str, Any] | None:
    """The options as a setting for `magr=`; None where MagR is off."""
    given = {name: value for name, value in options.items() if value is not None}
    if not magr:
        if given:
            names = ", ".join(OPTION_OF.get(name, f"--{name}") for name in given)
            raise InputError(
                f"--no-magr switches MagR off, and {names} would set it; leave out one or the other"
            )
        return None
    try:
        MagRConfig(**given)
    except ValueError as error:
        raise InputError(str(error)) from error
    return given


def check_grid(bits: int, group_size: int) -> None:
    """Refuse bits and group sizes that no toolkit packs."""
    if bits not in BITS:
        raise InputError(f"--bits {bits}: GPTQ checkpoints hold 2, 3, 4 or 8 bits")
    if group_size != -1 and group_size < 1:
        raise InputError(f"--group-size {group_size}: give a positive number, or -1 for the whole row")


def run(job: Job, verify: bool | None, sizing: Sizing | None = None) -> tuple[Job, Outcome]:
    """Do the job under a progress bar; the output folder appears with everything in it, or not at all.

    verify: see `try_loaders`. sizing: gives the job its widths first.
    """
    out = Path(job.out)
    for folder in leftovers(out):
        console.print(
            f"{escape(str(folder))} is of a run that was killed, or is still at work; it is left alone",
            soft_wrap=True,
        )
    log = out.with_name(f"{out.name}.{LOG}")
    with output_folder(out) as folder:
        log.write_text("")
        try:
            if sizing is not None:
                job = sizing.applied(job, log)
            outcome = _run_under_bar(replace(job, out=str(folder)), verify, log)
        except (InputError, KeyboardInterrupt):
            log.unlink(missing_ok=True)
            raise
        record = {"job": asdict(job), **asdict(outcome)}
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        (folder / CARD).write_text(model_card(job, outcome), encoding="utf-8")
        log.rename(folder / LOG)
        if sizing is not None:
            sizing.keep(job, folder)
    return job, outcome


def _run_under_bar(job: Job, verify: bool | None, log: Path) -> Outcome:
    with progress_bars() as bars:
        bar = bars.add_task("starting", total=None)
        listen = partial(show_event, bars, bar, "")
        # it ends, and frees its memory, before loaders are tried
        with Worker(log) as worker:
            outcome = worker.quantize(job, listen)
        if job.tune:
            outcome = replace(outcome, tuned=asdict(tune_in_place(job, log, bars, bar)))
        loaded = try_loaders(job, verify, log, listen)
        return replace(outcome, loaded=[asdict(found) for found in loaded])


def show(job: Job, outcome: Outcome) -> None:
    """What was done, where it lies, how to load it; the warning last, where there is one."""
    size = sum(file.stat().st_size for file in Path(job.out).glob("*.safetensors"))
    kind = f"{', '.join(map(str, job.all_bits))} bits, group {', '.join(map(str, sorted(job.group_sizes)))}"
    if outcome.seqlen < job.seqlen:
        console.print(f"Windows of {outcome.seqlen} tokens: the model takes no more than that.")
    begins = windows_in_words(job.cut, [outcome.beginning])
    console.print(f"Windows are {begins}.", markup=False, soft_wrap=True)
    if outcome.overlap:
        console.print(f"{outcome.overlap}.", markup=False, soft_wrap=True)
    distribution = ENGINES[job.engine].distribution
    toolkit = f"{distribution} {outcome.versions[distribution]}"
    console.print(f"Quantized in {outcome.seconds:.1f} s: {kind}, {toolkit}")
    show_totals(outcome)
    if outcome.tuned:
        tuned = Tuned(**outcome.tuned)
        if tuned.repeated:
            console.print(f"{tuned.repeated}.", markup=False, soft_wrap=True)
        console.print(f"Tuned in {tuned.seconds:.1f} s: {tuned.says}", soft_wrap=True)
    console.print(
        f"Saved {size / 1e6:.1f} MB to {escape(job.out)} (all about it in {RECORD}, log in {LOG})",
        soft_wrap=True,
    )
    for found in (Loaded(**found) for found in outcome.loaded):
        console.print(f"{found.loader}: {escape(found.says)}", soft_wrap=True)
    console.print("\nLoad it anywhere, without magr_gptq:")
    code = loading(job.engine, ENGINES[job.engine].loader, job.out)
    console.print(escape(code), style="cyan", soft_wrap=True)
    if outcome.warning:
        show_warning(f"Not as intended: {outcome.warning}. More calibration text may help; see {RECORD}.")


def show_totals(outcome: Outcome) -> None:
    """How many layers had which outcome, then one line a reason."""
    totals = outcome.totals
    counts = ", ".join(f"{count} {what}" for what, count in sorted(totals["outcomes"].items()))
    console.print(f"{totals['layers']} layers: {counts}")
    for row in totals["reasons"]:
        console.print(f"  {row['layers']} {row['outcome']}: {escape(row['reason'])}", soft_wrap=True)
    if few := totals.get("few_tokens"):
        console.print(f"{few}. More calibration text may help.", markup=False, soft_wrap=True)
