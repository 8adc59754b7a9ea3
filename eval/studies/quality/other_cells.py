"""Cells of methods that are not GPTQModel's: what `auto_round_cells.py` and `awq_cells.py` share.

The windows, the grids and the scoring are those of `run.py`, and its `table` prints these cells, too.
Cells that have a result are skipped. A checkpoint stays in `--work` until its cell is written.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from transformers import AutoTokenizer

from eval.lib.fidelity import CONTEXT
from eval.lib.kept import made_once
from eval.studies.quality.run import Cell, cells, path, scored, write
from magr_gptq.app.text import load_text, random_windows

# makes a cell's checkpoint in the folder; where it is, and what to record of it
Quantize = Callable[[Cell, str, argparse.Namespace], tuple[str, dict[str, Any]]]


def windows(cell: Cell, args: argparse.Namespace) -> list[list[int]]:
    """The token ids that every other method calibrates with."""
    tokens = AutoTokenizer.from_pretrained(args.model)(load_text(str(args.calibration)))["input_ids"]
    return random_windows(tokens, args.rows, CONTEXT, cell.seed)


def measure_all(methods: dict[str, Quantize], engine: str, description: str) -> None:
    """Measure every cell of the command line that has no result yet; `engine` loads the checkpoints."""
    args = _arguments(description, list(methods))
    args.out.mkdir(parents=True, exist_ok=True)
    for cell in cells(args.seeds, args.methods):
        # looked up now, not before: another run may share the folder
        if not path(args.out, cell.name).exists():
            _measure(cell, methods[cell.method], engine, args)


def _measure(cell: Cell, quantize: Quantize, engine: str, args: argparse.Namespace) -> None:
    """Quantize, save, score elsewhere; the checkpoint is kept until its record is written."""
    folder = args.work.resolve() / cell.name
    asked = {**asdict(cell), **{name: str(getattr(args, name)) for name in ("model", "calibration", "rows")}}
    record = made_once(folder, asked, partial(_made, cell, quantize, args))
    found = scored(str(folder / record.pop("checkpoint")), engine, args.log, args)
    versions = {**found["versions"], **record.pop("versions")}
    write(args.out, cell.name, {**asdict(cell), **found, **record, "versions": versions})
    rmtree(folder)


def _made(cell: Cell, quantize: Quantize, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What to record of it, and where in the folder the checkpoint is."""
    checkpoint, record = quantize(cell, str(folder), args)
    return {**record, "checkpoint": os.path.relpath(checkpoint, folder)}


def _arguments(description: str, methods: list[str]) -> argparse.Namespace:
    """The command line, as that of `run.py run`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text file")
    parser.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    parser.add_argument("--also", type=Path, help="another text to score, of another domain")
    parser.add_argument("--rows", type=int, default=128, help="calibration rows of 256 tokens")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--limit", type=int, default=256, help="scored windows of 256 tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "quality.log"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/quality-unscored"), help="folder of unscored checkpoints"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args()
