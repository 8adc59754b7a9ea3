r"""auto-round's checkpoints: cells of "auto-round" and "auto-round-best" next to those of `run.py`.

    python -m eval.studies.quality.auto_round_cells MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/quality/results/cells

Needs `pip install auto-round==0.16.*` next to magr_gptq and GPTQModel. auto-round trains the rounding and the
ranges of every block, in 200 steps of 8 windows by default. Its best recipe takes 1,000, here by its
extended algorithm. Windows are those that `run.py` calibrates with, grids are symmetric.
Its checkpoints are ordinary GPTQ ones, scored by the same code in a fresh process. Cells that have a result
are skipped; `run.py table` prints them, too.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from eval.lib.fidelity import CONTEXT
from eval.studies.quality.other_cells import measure_all, windows
from eval.studies.quality.run import Cell

PACKAGE = "auto-round"
# auto-round's own defaults, and its best
RECIPES = {PACKAGE: {"iters": 200}, f"{PACKAGE}-best": {"iters": 1000, "enable_alg_ext": True}}
ROWS_AT_ONCE = 8


def batches(cell: Cell, args: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """The windows as auto-round takes them."""
    # without a mask auto-round takes the end token, which may occur in a text, for padding
    return [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        for rows in torch.split(torch.tensor(windows(cell, args)), ROWS_AT_ONCE)
    ]


def quantize(
    recipe: dict[str, Any], cell: Cell, folder: str, args: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """Train, round and save; the checkpoint, which lies in a folder of its own in there."""
    from auto_round import AutoRound

    rounder = AutoRound(
        str(args.model), bits=cell.bits, group_size=cell.group_size, sym=True,
        dataset=batches(cell, args), nsamples=args.rows, seqlen=CONTEXT, batch_size=ROWS_AT_ONCE,
        # float32, as GPTQModel calibrates on CPUs here; bfloat16 would round what is not quantized, too
        seed=cell.seed, amp=False, device_map="cpu",
        # to compile takes longer than it saves on so small a model
        enable_torch_compile=False, **recipe,
    )  # fmt: skip
    start = time.perf_counter()
    _, checkpoint = rounder.quantize_and_save(folder, format="auto_gptq")
    seconds = time.perf_counter() - start
    versions = {PACKAGE: version(PACKAGE)}
    return str(checkpoint), {"versions": versions, **recipe, "quantize_seconds": seconds, "magr": None}


if __name__ == "__main__":
    methods = {name: partial(quantize, recipe) for name, recipe in RECIPES.items()}
    measure_all(methods, "gptqmodel", __doc__)
