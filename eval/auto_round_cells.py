"""Perplexity of auto-round's checkpoints: cells of the method "auto-round" beside those of `quality.py`.

    python eval/auto_round_cells.py MODEL --calibration FILE --evaluation FILE --out eval/results/quality

Needs `pip install auto-round==0.16.*` beside magr_gptq and GPTQModel. auto-round trains the rounding and the
ranges of every block, 200 steps of 8 windows by default; here on the windows that `quality.py` calibrates
with, in symmetric grids, with its own settings otherwise. Its checkpoints are ordinary GPTQ ones, scored by
the same code in a fresh process. Cells that have a result are skipped; `quality.py table` prints them, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from quality import CONTEXT, Cell, cells, path, scored, write
from transformers import AutoTokenizer

from magr_gptq.text import load_text, random_windows

METHOD = "auto-round"
# auto-round's own defaults
STEPS, ROWS_AT_ONCE = 200, 8


def batches(cell: Cell, args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The windows that every other method calibrates with, as auto-round takes them."""
    tokens = AutoTokenizer.from_pretrained(args.model)(load_text(str(args.calibration)))["input_ids"]
    windows = torch.tensor(random_windows(tokens, args.rows, CONTEXT, cell.seed))
    # without a mask auto-round takes the end token, which may occur in a text, for padding
    return [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        for rows in torch.split(windows, ROWS_AT_ONCE)
    ]


def quantize(cell: Cell, folder: str, args: argparse.Namespace) -> tuple[str, float]:
    """Train, round and save; the checkpoint, which lies in a folder of its own in there, and the seconds."""
    from auto_round import AutoRound

    rounder = AutoRound(
        str(args.model), bits=cell.bits, group_size=cell.group_size, sym=True, iters=STEPS,
        dataset=batches(cell, args), nsamples=args.rows, seqlen=CONTEXT, batch_size=ROWS_AT_ONCE,
        # float32, as GPTQModel calibrates on CPUs here; bfloat16 would round what is not quantized, too
        seed=cell.seed, amp=False, device_map="cpu",
        # to compile takes longer than it saves on so small a model
        enable_torch_compile=False,
    )  # fmt: skip
    start = time.perf_counter()
    _, checkpoint = rounder.quantize_and_save(folder, format="auto_gptq")
    return str(checkpoint), time.perf_counter() - start


def measure(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize, save, score elsewhere; the checkpoint is not kept."""
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        checkpoint, seconds = quantize(cell, folder, args)
        found = scored(checkpoint, "gptqmodel", args.log, args)
    found["versions"][METHOD] = version(METHOD)
    return {**asdict(cell), **found, "steps": STEPS, "quantize_seconds": seconds, "magr": None}


def arguments() -> argparse.Namespace:
    """The command line, as that of `quality.py run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="text file")
    parser.add_argument("--evaluation", type=Path, required=True, help="held-out text file")
    parser.add_argument("--also", type=Path, help="another text to score, of another domain")
    parser.add_argument("--rows", type=int, default=128, help="calibration rows of 256 tokens")
    parser.add_argument("--limit", type=int, default=256, help="scored windows of 256 tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "quality.log"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Measure every cell that has no result yet."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for cell in cells(args.seeds, [METHOD]):
        # looked up now, not before: another run may share the folder
        if not path(args.out, cell.name).exists():
            write(args.out, cell.name, measure(cell, args))


if __name__ == "__main__":
    main()
