"""`magr-gptq inspect`: what MagR would do to a model, before anything is quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from magr_gptq.app.cli.options import (
    AllowPickle,
    CalibrationText,
    Cut,
    EngineName,
    ForRuntime,
    Samples,
    Seed,
    SeqLen,
    TrustRemoteCode,
    WindowCut,
)
from magr_gptq.app.cli.quantize import check_grid
from magr_gptq.app.cli.sizing import AvgBits, GroupSizes, Head, Size, Sizing
from magr_gptq.app.console import console, errors_shown, output_hidden, progress_bars
from magr_gptq.app.inputs import Windows, find_model, local_folder, read_model
from magr_gptq.app.inspecting.figure import draw
from magr_gptq.app.inspecting.forecast import LayerForecast, forecast_layers, spread
from magr_gptq.app.inspecting.views import show
from magr_gptq.app.planning.views import draw_plan, show_plan
from magr_gptq.app.quantizing.engines import DEFAULT_ENGINE, require_able
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.quantizing.runtimes import Asked
from magr_gptq.app.text import find_source
from magr_gptq.errors import InputError

TOKENS_AT_ONCE = 2048
FUSED = (
    "an expert of several in one weight, whose input is not seen here; gptqmodel and llm-compressor take it "
    "apart, and quantize it"
)


def inspect(
    model: Annotated[str, typer.Argument(help="Model folder or Hugging Face hub id.", show_default=False)],
    calibration: CalibrationText,
    bits: Annotated[
        str | None,
        typer.Option(
            help="Bit widths to predict, with commas between; 4,3,2 if left out.", show_default=False
        ),
    ] = None,
    avg_bits: AvgBits = None,
    size: Size = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Write the plan of --avg-bits or --size to this file, for quantize --plan."),
    ] = None,
    engine: EngineName = DEFAULT_ENGINE,
    runtime: ForRuntime = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale; -1 is the whole row, the default. A plan's is quantize's 128.",
            show_default=False,
        ),
    ] = None,
    group_sizes: GroupSizes = None,
    head: Head = False,
    samples: Samples = 128,
    seqlen: SeqLen = 2048,
    seed: Seed = 0,
    cut: WindowCut = Cut.tokenizer,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all numbers to this file.", show_default=False)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Draw them into this .png file.", show_default=False)
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Predict what MagR would do to MODEL, layer by layer, without quantizing anything."""
    with errors_shown():
        sizing = Sizing.of(bits, avg_bits, size, None, group_sizes, head)
        if group_size is None:
            group_size = -1 if sizing is None else Job.group_size
        widths = parse_widths(bits or "4,3,2", group_size)
        for name, value in {"--plan": plan, "--for": runtime}.items():
            if sizing is None and value is not None:
                raise InputError(f"{name} {value} belongs to --avg-bits or --size; give one of them, too")
        check_outputs({"--json": json_file, "--figure": figure, "--plan": plan})
        source = str(find_source(calibration))
        found_model = find_model(model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
        if find_spec("transformers") is None:
            raise InputError(
                "inspect runs the model in transformers, which is missing; pip install transformers"
            )
        if sizing is not None:
            job = Job(
                model=found_model, out="", calibration=source, engine=engine, runtime=runtime,
                group_size=group_size, samples=samples, seqlen=seqlen, seed=seed, cut=cut.value,
                trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            )  # fmt: skip
            show_sizing(sizing, job, plan or json_file, figure)
            return
        with output_hidden():
            folder = local_folder(found_model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
            files = read_model(folder, trust_remote_code)
            drawn = files.windows(source, samples=samples, seqlen=seqlen, seed=seed, cut=cut.value)
            windows = torch.tensor(drawn.rows)
            loaded = load_model(folder, trust_remote_code)
        tell_of_windows(drawn, seqlen)
        layers = forecast_model(loaded, windows, widths, group_size)
        show(layers)
        if json_file:
            asked = {
                "model": found_model, "calibration": source, "group_size": group_size, "samples": samples,
                "seqlen": windows.shape[1], "seed": seed, "cut": cut.value, "bits": widths,
            }  # fmt: skip
            json_file.write_text(json.dumps(record(asked, layers), indent=1) + "\n")
            console.print(f"Numbers in {json_file}", markup=False, soft_wrap=True)
        if figure:
            draw(layers, figure)
            console.print(f"Figure in {figure}", markup=False, soft_wrap=True)


def tell_of_windows(windows: Windows, seqlen: int) -> None:
    """What is not as it was asked for."""
    if len(windows.rows[0]) < seqlen:
        console.print(f"Windows of {len(windows.rows[0])} tokens: the model takes no more than that.")
    if windows.overlap:
        console.print(f"{windows.overlap}.", markup=False, soft_wrap=True)


def parse_widths(text: str, group_size: int) -> tuple[int, ...]:
    """The bit widths in text such as 4,3,2."""
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--bits {text}: give whole numbers with commas between, such as 4,3,2") from error
    for width in widths:
        check_grid(width, group_size)
    return tuple(dict.fromkeys(widths))


def show_sizing(sizing: Sizing, job: Job, file: Path | None, figure: Path | None) -> None:
    """The plan of a size, made without quantizing; written to the files that were asked for."""
    if job.runtime is not None:
        asked = Asked(job.engine, job.bits, job.group_size, job.sym, job.desc_act)
        job = replace(job, engine=sizing.road(job.runtime, asked).engine)
    require_able(job.engine, rounding=job.rounding, magr=True, mixed=True)
    with TemporaryDirectory(prefix="magr-gptq-") as scratch:
        found = sizing.make(job, Path(scratch, "plan.log"))
    show_plan(found)
    if file:
        file.write_text(found.to_json(), encoding="utf-8")
        console.print(f"Plan in {file}; change it as you like, and give it to quantize --plan", markup=False)
    if figure:
        draw_plan(found, figure)
        console.print(f"Figure in {figure}", markup=False, soft_wrap=True)


def check_outputs(files: Mapping[str, Path | None]) -> None:
    """Refuse, before the work, what could not be written after it; by option."""
    for option, path in files.items():
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise InputError(f"{option} {path}: give a file in a folder that exists")
    figure = files.get("--figure")
    if figure is None:
        return
    if figure.suffix.lower() != ".png":
        raise InputError(f"--figure {figure}: the name must end in .png")
    if find_spec("matplotlib") is None:
        raise InputError("--figure needs matplotlib; pip install 'magr-gptq[eval]'")


def load_model(folder: Path, trust_remote_code: bool) -> Any:
    """The model, in float32 on a CPU and in its own dtype on a GPU."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return model.cuda() if torch.cuda.is_available() else model.float()


def forecast_model(
    model: Any, windows: torch.Tensor, widths: tuple[int, ...], group_size: int
) -> list[LayerForecast]:
    """Every linear layer below the head, in the model's order."""
    # imports transformers, which takes seconds
    from magr_gptq.app.inspecting import hessians

    layers = hessians.linear_layers(model)
    batches = torch.split(windows, max(1, TOKENS_AT_ONCE // windows.shape[1]))
    turns = list(hessians.in_turns(layers))
    found: dict[str, LayerForecast] = {}
    with progress_bars() as bars:
        passes = bars.add_task("running the model", total=len(turns) * len(batches))
        solved = bars.add_task("reducing layers", total=len(layers))
        for turn in turns:
            for given in hessians.layer_inputs(model, turn, batches, partial(bars.advance, passes)):
                weights = {name: hessians.matrix_of(layers[name]) for name in given.names}
                require_finite({f"the input of {given.names[0]}": given.hessian, **weights})
                for layer in forecast_layers(weights, given.hessian, given.tokens, widths, group_size):
                    found[layer.name] = layer
                    bars.advance(solved)
    if not found:
        raise InputError(f"{model.name_or_path} has not one linear layer below its head that a token reached")
    for name in layers.keys() - found.keys():
        shape = tuple(hessians.matrix_of(layers[name]).shape)
        found[name] = LayerForecast(name, shape, 0, skipped="no token reached it")
    fused = hessians.fused_experts(model).items()
    experts = [LayerForecast(name, shape, 0, skipped=FUSED) for name, shape in fused]
    return [found[name] for name in layers] + experts


def require_finite(tensors: dict[str, torch.Tensor]) -> None:
    """InputError with the name of the first that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} holds NaN or infinity; give an undamaged model, in bfloat16 or float32")


def record(asked: dict[str, Any], layers: list[LayerForecast]) -> dict[str, Any]:
    """What was asked for and everything that was found, ready for JSON."""
    ranks = [layer.fraction_rank for layer in layers if layer.fraction_rank is not None]
    return {
        **asked,
        "versions": {name: version(name) for name in ("magr-gptq", "torch", "transformers")},
        "fraction_rank": spread(ranks),
        "layers": [layer.to_dict() for layer in layers],
    }
