r"""auto-round's checkpoints: cells of "auto-round" and "auto-round-best" next to those of `run.py`.

    python -m eval.studies.quality.auto_round_cells MODEL --calibration FILE --evaluation FILE \
        --out eval/studies/quality/results/cells

See `eval.lib.auto_round`. Windows are those that `run.py` calibrates with. Checkpoints are scored by the same
code in a fresh process. Cells that have a result are skipped; `run.py table` prints them, too.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from eval.lib import auto_round
from eval.studies.quality.other_cells import measure_all, windows
from eval.studies.quality.run import Cell


def quantize(recipe: str, cell: Cell, folder: str, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """In float32, as GPTQModel calibrates on CPUs here."""
    checkpoint, record = auto_round.quantize(
        str(args.model), windows(cell, args), folder, recipe=recipe, bits=cell.bits,
        group_size=cell.group_size, seed=cell.seed, amp=False,
    )  # fmt: skip
    return checkpoint, {**record, "magr": None}


if __name__ == "__main__":
    methods = {recipe: partial(quantize, recipe) for recipe in auto_round.RECIPES}
    measure_all(methods, "gptqmodel", __doc__)
