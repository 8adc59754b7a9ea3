"""A model through llm-compressor, with and without MagR: seconds, and how far its saved predictions moved.

On a GPU llm-compressor rounds by a kernel that turns grids of negative steps into zeros, and MagR leaves it
out (`toolkits/llmcompressor/kernels.py`). So at 2 bits MagR must be nearer to the original than plain GPTQ.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from eval.studies.solver.layers import DEMO
from magr_gptq.app.quantizing.child import perform
from magr_gptq.app.quantizing.job import Job
from magr_score.divergence import divergence
from tools.gpu.models import DRY_LENGTH, DRY_WINDOWS, GROUP_SIZE, LENGTH, WINDOWS, originals, windows
from tools.gpu.part import Part, parse

BITS = 2
SCORED = 4


def quantize(part: Part, original: Path, magr: bool) -> tuple[Path, float]:
    """The checkpoint, and the seconds of llm-compressor's oneshot()."""
    out = part.work / f"{original.name}-compressed-{'magr' if magr else 'gptq'}"
    count, length = (DRY_WINDOWS, DRY_LENGTH) if part.dry else (WINDOWS, LENGTH)
    job = Job(
        model=str(original), out=str(out), calibration=str(DEMO / "text" / "calibration.txt"),
        engine="llm-compressor", bits=BITS, group_size=GROUP_SIZE, samples=count, seqlen=length,
        magr={} if magr else None,
    )  # fmt: skip
    done = perform(asdict(job), lambda *_, **__: None)
    return out, done["seconds"]


@torch.no_grad()
def logits(folder: Path, rows: torch.Tensor, device: str) -> torch.Tensor:
    """Of the model in this folder, in the dtype that it was saved in."""
    # transformers decorates what moves a model, and its types are lost
    model: Any = AutoModelForCausalLM.from_pretrained(folder, device_map=device)
    found: torch.Tensor = model.eval()(input_ids=rows.to(device)).logits.float()
    return found


def main(part: Part) -> None:
    """A line without MagR, and one with it, which tells whether it is the nearer one."""
    (original, *_) = originals(part)
    length = DRY_LENGTH if part.dry else LENGTH
    rows = torch.tensor(windows(original, "evaluation.txt", SCORED, length))
    exact = logits(original, rows, part.device)
    kl = {}
    for magr in (False, True):
        with part.case(model=original.name, bits=BITS, magr=magr) as found:
            folder, seconds = quantize(part, original, magr)
            kl[magr] = float(divergence(exact, logits(folder, rows, part.device)).mean())
            found |= {"seconds": seconds, "kl": kl[magr], "right": kl[magr] <= kl[False]}


if __name__ == "__main__":
    main(parse(__doc__))
