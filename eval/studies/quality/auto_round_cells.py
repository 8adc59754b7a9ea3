r"""Perplexity of auto-round's checkpoints: cells of the method "auto-round" next to those of `run.py`.

    python -m eval.studies.quality.auto_round_cells MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/quality/results/cells

Needs `pip install auto-round==0.16.*` next to magr_gptq and GPTQModel. auto-round trains the rounding and the
ranges of every block, 200 steps of 8 windows by default; here on the windows that `run.py` calibrates
with, in symmetric grids, with its own settings otherwise. Its checkpoints are ordinary GPTQ ones, scored by
the same code in a fresh process. Cells that have a result are skipped; `run.py table` prints them, too.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from typing import Any

import torch

from eval.lib.fidelity import CONTEXT
from eval.studies.quality.other_cells import measure_all, windows
from eval.studies.quality.run import Cell

METHOD = "auto-round"
# auto-round's own defaults
STEPS, ROWS_AT_ONCE = 200, 8


def batches(cell: Cell, args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The windows as auto-round takes them."""
    # without a mask auto-round takes the end token, which may occur in a text, for padding
    return [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        for rows in torch.split(torch.tensor(windows(cell, args)), ROWS_AT_ONCE)
    ]


def quantize(cell: Cell, folder: str, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Train, round and save; the checkpoint, which lies in a folder of its own in there."""
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
    seconds = time.perf_counter() - start
    versions = {METHOD: version(METHOD)}
    return str(checkpoint), {"versions": versions, "steps": STEPS, "quantize_seconds": seconds, "magr": None}


if __name__ == "__main__":
    measure_all({METHOD: quantize}, "gptqmodel", __doc__)
