"""Five roads from a model to a checkpoint, with and without `magr`, each loaded and scored elsewhere.

    .venv/modern/bin/python -m eval.studies.roads.run run --out eval/studies/roads/results
    .venv/autogptq/bin/python -m eval.studies.roads.run run --out eval/studies/roads/results
    .venv/modern/bin/python -m eval.studies.roads.run table --out eval/studies/roads/results

`run` takes the roads that are installed in its environment: GPTQModel, optimum, transformers and
llm-compressor in one, AutoGPTQ in the other. Each quantizes as its own documentation says, in groups
of 128 with its own defaults; `magr=True` is the only difference. A fresh process that never imports
magr_gptq scores what was saved. Every cell is a JSON file in `--out`; those that are there are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import magr_gptq
from magr_gptq.app.processes import toolkit_environment
from magr_gptq.app.scoring import score_all
from magr_gptq.app.text import load_text, random_windows

DEMO = Path(str(files("magr_gptq.app") / "demo"))
CONTEXT = 256
GROUP_SIZE = 128
BITS = (4, 3, 2)
CELLS = [(bits, magr) for bits in BITS for magr in (False, True)]
SEED = 0


@dataclass(frozen=True)
class Task:
    """One checkpoint to make from the demo's model.

    magr: what the toolkit's keyword takes. texts: calibration text, cut into windows.
    """

    bits: int
    magr: bool | dict[str, Any]
    texts: list[str]
    out: Path
    model: str = str(DEMO / "model")

    @property
    def switch(self) -> dict[str, Any]:
        """The keyword for a toolkit's config; left out where MagR is off."""
        return {"magr": self.magr} if self.magr else {}

    def rows(self) -> list[dict[str, list[int]]]:
        """The texts as token ids."""
        encoded = AutoTokenizer.from_pretrained(self.model)(self.texts)["input_ids"]
        return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in encoded]


def by_gptqmodel(task: Task) -> None:
    """`QuantizeConfig(..., magr=True)`."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=task.bits, group_size=GROUP_SIZE, device="cpu", offload_to_disk=False, **task.switch
    )
    model = GPTQModel.load(task.model, config, backend=BACKEND.TORCH, dtype=torch.float32)
    model.quantize(task.rows(), batch_size=8, backend=BACKEND.TORCH)
    model.save(str(task.out))


def by_autogptq(task: Task) -> None:
    """`BaseQuantizeConfig(..., magr=True)`."""
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    config = BaseQuantizeConfig(bits=task.bits, group_size=GROUP_SIZE, desc_act=False, **task.switch)
    model = AutoGPTQForCausalLM.from_pretrained(task.model, config, torch_dtype=torch.float32)
    model.quantize(task.rows(), batch_size=8)
    model.save_quantized(str(task.out), use_safetensors=True)


def by_optimum(task: Task) -> None:
    """`GPTQQuantizer(..., magr=True)`, saved by `save_pretrained`: see the README on its own `save`."""
    from optimum.gptq import GPTQQuantizer

    rows = [{name: [values] for name, values in row.items()} for row in task.rows()]
    quantizer = GPTQQuantizer(bits=task.bits, group_size=GROUP_SIZE, dataset=rows, **task.switch)
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    quantizer.quantize_model(model).save_pretrained(task.out)


def by_transformers(task: Task) -> None:
    """`GPTQConfig(..., magr=True)`."""
    from transformers import GPTQConfig

    config = GPTQConfig(
        bits=task.bits, group_size=GROUP_SIZE, dataset=task.texts, tokenizer=task.model, **task.switch
    )
    model = AutoModelForCausalLM.from_pretrained(task.model, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(task.out)


def by_llmcompressor(task: Task) -> None:
    """`MagRGPTQModifier(..., magr=True)`; without MagR llm-compressor's own GPTQModifier."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

    weights = {"num_bits": task.bits, "type": "int", "strategy": "group", "group_size": GROUP_SIZE}
    modifier = (MagRGPTQModifier if task.magr else GPTQModifier)(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
        ignore=["lm_head"], **task.switch,
    )  # fmt: skip
    dataset = Dataset.from_list(task.rows())
    oneshot(
        model=task.model, dataset=dataset, recipe=[modifier], output_dir=str(task.out),
        num_calibration_samples=len(dataset), max_seq_length=CONTEXT,
    )  # fmt: skip


@dataclass(frozen=True)
class Road:
    """toolkit: see `magr_gptq.toolkits`.   module: installed where the road is.

    loader: the engine of `score.py` that reads its checkpoints.
    """

    toolkit: str
    module: str
    quantize: Callable[[Task], None]
    loader: str


ROADS = {
    "GPTQModel": Road("gptqmodel", "gptqmodel", by_gptqmodel, "gptqmodel"),
    "AutoGPTQ": Road("auto-gptq", "auto_gptq", by_autogptq, "auto-gptq"),
    "optimum": Road("optimum", "gptqmodel", by_optimum, "transformers"),
    "transformers": Road("optimum", "gptqmodel", by_transformers, "transformers"),
    "llm-compressor": Road("llm-compressor", "llmcompressor", by_llmcompressor, "transformers"),
}


def installed_roads() -> dict[str, Road]:
    """Those that can be taken in this environment."""
    return {name: road for name, road in ROADS.items() if importlib.util.find_spec(road.module)}


def calibration_texts(rows: int) -> list[str]:
    """Windows of the demo's calibration text, as text, since transformers takes nothing else."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    tokens = tokenizer(load_text(str(DEMO / "text" / "calibration.txt")))["input_ids"]
    # cut a little short: a window that starts amid a word may need more tokens than it had
    windows = random_windows(tokens, rows, CONTEXT - 6, SEED)
    return [tokenizer.decode(window) for window in windows]


Cell = tuple[int, bool]


def measure(name: str, cells: list[Cell], *, rows: int, limit: int, log: Path) -> dict[Cell, dict[str, Any]]:
    """Quantize on this road and save, every cell; then one vanilla process loads and scores them all."""
    road, texts = ROADS[name], calibration_texts(rows)
    seconds = {}
    with tempfile.TemporaryDirectory(prefix="road-") as root, magr_gptq.enabled(road.toolkit):
        folders = [Path(root, f"w{bits}-{magr}") for bits, magr in cells]
        for cell, folder in zip(cells, folders, strict=True):
            start = time.perf_counter()
            road.quantize(Task(*cell, texts, folder))
            seconds[cell] = round(time.perf_counter() - start, 1)
            AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)
        text = DEMO / "text" / "evaluation.txt"
        found = score_all(
            [str(folder) for folder in folders], text,
            engine=road.loader, seqlen=CONTEXT, limit=limit, log=log,
        )  # fmt: skip
    shared = {"road": name, "group_size": GROUP_SIZE, "rows": rows, "seed": SEED}
    return {
        (bits, magr): {
            **shared, "bits": bits, "magr": magr, "road_seconds": seconds[bits, magr],
            **score, "versions": {**score["versions"], **_version_of(road.toolkit)},
        }
        for (bits, magr), score in zip(cells, found, strict=True)
    }  # fmt: skip


def _version_of(toolkit: str) -> dict[str, str]:
    distribution = magr_gptq.toolkits.TOOLKITS[toolkit].distribution
    return {distribution: version(distribution)}


def run(args: argparse.Namespace) -> None:
    """Measure every cell of the installed roads that has no result yet."""
    os.environ.update(toolkit_environment())
    args.out.mkdir(parents=True, exist_ok=True)
    # GPTQModel writes ./logs into the folder that it runs in
    out, scratch = args.out.resolve(), tempfile.mkdtemp(prefix="roads-")
    os.chdir(scratch)
    for name in installed_roads():
        paths = {cell: out / file_name(name, *cell) for cell in CELLS}
        missing = [cell for cell, path in paths.items() if not path.exists()]
        if not missing:
            continue
        log = Path(scratch, "log")
        for cell, found in measure(name, missing, rows=args.rows, limit=args.limit, log=log).items():
            paths[cell].write_text(json.dumps(found, indent=2) + "\n")
            print(f"{paths[cell].stem}: {found['perplexity']:.3f}", flush=True)


def file_name(road: str, bits: int, magr: bool) -> str:
    """Of a cell's result."""
    return f"{road.lower()}-w{bits}-{'magr' if magr else 'gptq'}.json"


def table(args: argparse.Namespace) -> None:
    """Print what was measured so far."""
    found = [json.loads(path.read_text()) for path in args.out.glob("*.json")]
    perplexities = {(cell["road"], cell["bits"], cell["magr"]): cell["perplexity"] for cell in found}
    print("| perplexity, GPTQ → GPTQ+MagR | " + " | ".join(f"W{bits} g{GROUP_SIZE}" for bits in BITS) + " |")
    print("|---|" + "---|" * len(BITS))
    for name in ROADS:
        pairs = [[perplexities.get((name, bits, magr)) for magr in (False, True)] for bits in BITS]
        entries = ["" if None in pair else "{:.2f} → {:.2f}".format(*pair) for pair in pairs]
        print(f"| {name} | " + " | ".join(entries) + " |")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="measure what is missing")
    running.add_argument("--rows", type=int, default=128, help="calibration windows")
    running.add_argument("--limit", type=int, default=256, help="scored windows of 256 tokens")
    running.set_defaults(command=run)
    printing = commands.add_parser("table", help="print the results so far")
    printing.set_defaults(command=table)
    for command in (running, printing):
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
