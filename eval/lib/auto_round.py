"""auto-round's checkpoints, from windows that other methods calibrate with.

Needs `pip install auto-round==0.16.*` next to magr_gptq and GPTQModel. auto-round trains the rounding and the
ranges of every block, in 200 steps of 8 windows by default. Its best recipe takes 1,000, here by its
extended algorithm. Grids are symmetric, and what comes out is an ordinary GPTQ checkpoint.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch

PACKAGE = "auto-round"
# auto-round's own defaults, and its best
RECIPES: dict[str, dict[str, Any]] = {
    PACKAGE: {"iters": 200},
    f"{PACKAGE}-best": {"iters": 1000, "enable_alg_ext": True},
}
ROWS_AT_ONCE = 8


def quantize(
    model: str,
    windows: list[list[int]],
    folder: str,
    *,
    recipe: str,
    bits: int,
    group_size: int,
    seed: int,
    amp: bool,
) -> tuple[str, dict[str, Any]]:
    """Train, round and save; the checkpoint, which lies in a folder of its own in there, and what to record.

    Args:
        amp: train in bfloat16, which is auto-round's default; what is not quantized is saved in it, too.
    """
    from auto_round import AutoRound

    settings = RECIPES[recipe]
    rounder = AutoRound(
        model, bits=bits, group_size=group_size, sym=True, dataset=_batches(windows), nsamples=len(windows),
        seqlen=len(windows[0]), batch_size=ROWS_AT_ONCE, seed=seed, amp=amp, device_map="cpu",
        # to compile takes longer than it saves on small models
        enable_torch_compile=False, **settings,
    )  # fmt: skip
    start = time.perf_counter()
    _, checkpoint = rounder.quantize_and_save(folder, format="auto_gptq")
    seconds = time.perf_counter() - start
    record = {"versions": {PACKAGE: version(PACKAGE)}, **settings, "amp": amp, "quantize_seconds": seconds}
    return str(checkpoint), record


def _batches(windows: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    """The windows as auto-round takes them."""
    # without a mask auto-round takes the end token, which may occur in a text, for padding
    return [
        {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        for rows in torch.split(torch.tensor(windows), ROWS_AT_ONCE)
    ]
