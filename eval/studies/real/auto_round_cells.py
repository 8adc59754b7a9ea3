r"""auto-round's checkpoints of a pretrained model: cells next to those of `run.py`.

    python -m eval.studies.real.auto_round_cells smollm2 --calibration wikitext-2/valid.txt \
        --evaluation wikitext-2/test.txt --limit 20 --out eval/studies/real/results/smollm2

See `eval.lib.auto_round`. Windows are those that `run.py` calibrates with, and each checkpoint is kept and
scored as there. auto-round trains in bfloat16, as it does by default, and as both models were saved.
"""

from __future__ import annotations

import argparse
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from eval.lib import auto_round
from eval.lib.kept import made_once
from eval.studies.quality.run import path
from eval.studies.real.fetch import SOURCES, fetch
from eval.studies.real.run import Cell, add_arguments, batches, place, write
from magr_gptq.app.scoring import diverge
from magr_gptq.app.text import load_text, random_windows
from magr_score.windows import TOKENIZER, tokenize


def measure(cell: Cell, model: Path, args: argparse.Namespace) -> None:
    """Quantize, save, score elsewhere; the checkpoint is kept until its record is written."""
    folder = place(args) / cell.name
    asked = {
        **cell._asdict(), "model": str(model.resolve()), "calibration": str(args.calibration.resolve()),
        "seqlen": args.seqlen,
    }  # fmt: skip
    record = made_once(folder, asked, partial(quantize, cell, model, args))
    found = diverge(
        str(model.resolve()), str(folder / record.pop("checkpoint")), args.evaluation.resolve(),
        engine="gptqmodel", seqlen=args.seqlen, limit=args.limit, log=args.log,
    )  # fmt: skip
    versions = {**found["versions"], **record.pop("versions")}
    write(args.out, cell.name, {**cell._asdict(), **found, **record, "versions": versions})
    shutil.rmtree(folder)


def quantize(cell: Cell, model: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What to record of it, and where in the folder the checkpoint is."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    beginning, tokens = tokenize(tokenizer, load_text(str(args.calibration)), TOKENIZER)
    windows = random_windows(tokens, cell.samples, args.seqlen, cell.seed, beginning)
    checkpoint, record = auto_round.quantize(
        str(model), windows, str(folder), recipe=cell.method, bits=cell.bits, group_size=cell.group_size,
        seed=cell.seed, amp=True,
    )  # fmt: skip
    inside = os.path.relpath(checkpoint, folder)
    return {**record, "threads": torch.get_num_threads(), "checkpoint": inside}


def main() -> None:
    """Measure every cell that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser, methods=list(auto_round.RECIPES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = args.models / args.model
    if not model.exists():
        fetch(SOURCES[args.model], model)
    for cell in (cell for cells in batches(args) for cell in cells):
        # looked up now, not before: another run may share the folder
        if not path(args.out, cell.name).exists():
            measure(cell, model, args)


if __name__ == "__main__":
    main()
