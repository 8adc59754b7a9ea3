r"""Perplexity of AWQ by llm-compressor, with rounding to nearest and with MagR: cells next to `run.py`'s.

    python -m eval.studies.quality.awq_cells MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/quality/results/cells

AWQ rescales channels between layers so that rounding hurts the output least; what rounds comes after it. Here
that is rounding to nearest, as AWQ was published ("awq"), plain GPTQ ("awq-gptq") and GPTQ with MagR
("awq-default"), to be compared with that same MagR on the weights as they were ("default-llmcompressor").
All in symmetric grids, where AWQ is usually run with zero points, on the windows that `run.py` calibrates
with; the checkpoints are compressed-tensors', loaded by transformers in a fresh process. Why not GPTQModel's
own AWQ: see README.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from eval.lib.fidelity import CONTEXT
from eval.studies.quality.other_cells import measure_all, windows
from eval.studies.quality.run import Cell


def _nearest(**scheme: Any) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(**scheme)


def _gptq(magr: bool, **scheme: Any) -> Any:
    from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

    return MagRGPTQModifier(magr=magr, **scheme)


def _awq() -> list[Any]:
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    # AWQModifier pins what it cached, which torch refuses where there is no accelerator
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None
    return [AWQModifier()]


def quantize(
    before: Callable[[], list[Any]],
    make_rounding: Callable[..., Any],
    cell: Cell, folder: str, args: argparse.Namespace,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Rescale, round and save."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows(cell, args)]
    # float32, as GPTQModel calibrates on CPUs here
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    recipe = [*before(), make_rounding(config_groups={"group_0": scheme(cell)}, ignore=["lm_head"])]
    start = time.perf_counter()
    oneshot(
        model=model, dataset=Dataset.from_list(rows), recipe=recipe,
        num_calibration_samples=len(rows), max_seq_length=CONTEXT, batch_size=8,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    model.half().save_pretrained(folder, save_compressed=True)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(folder)
    return folder, {"versions": {"llmcompressor": version("llmcompressor")}, "quantize_seconds": seconds}


def scheme(cell: Cell) -> dict[str, Any]:
    """The cell's grid, as llm-compressor names it."""
    grouped = {"strategy": "group", "group_size": cell.group_size}
    strategy = {"strategy": "channel"} if cell.group_size == -1 else grouped
    return {"targets": ["Linear"], "weights": {"num_bits": cell.bits, "type": "int", **strategy}}


METHODS = {
    "awq": partial(quantize, _awq, _nearest),
    "awq-gptq": partial(quantize, _awq, partial(_gptq, False)),
    "awq-default": partial(quantize, _awq, partial(_gptq, True)),
    "default-llmcompressor": partial(quantize, list, partial(_gptq, True)),
}

if __name__ == "__main__":
    measure_all(METHODS, "transformers", __doc__)
