"""The windows to tune on, which are those of a quantization, and others of the same text to hold out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magr_gptq.app.inputs import Model, check_vocabulary
from magr_gptq.app.text import load_text, random_starts
from magr_gptq.app.tuning.job import TuneJob
from magr_gptq.errors import InputError
from magr_score.windows import model_limit, tokenize

# of the windows to tune on, how many are held out in addition: 4,096 tokens of the demo's
HELD_OUT_SHARE = 8


def draw_windows(model: Model, job: TuneJob) -> tuple[Tensor, Tensor]:
    """Token ids [windows, tokens] to tune on, and to hold out.

    Raises:
        InputError: the text is too short to have windows that overlap none of the others.
    """
    beginning, tokens = tokenize(model.tokenizer, load_text(job.calibration), job.cut)
    length = min(job.seqlen, model_limit(model.config))
    starts = random_starts(tokens, job.samples, length, job.seed, len(beginning))
    own = length - len(beginning)
    free = free_starts(len(tokens), own, starts)
    count = max(1, job.samples // HELD_OUT_SHARE)
    if len(free) < count:
        raise InputError(
            f"the calibration text has {len(tokens):,} tokens, too few for {job.samples} windows of "
            f"{length:,} and {count} others to hold out; give a longer text, or a smaller --samples or "
            "--seqlen"
        )
    held_out = [free[place * len(free) // count] for place in range(count)]
    found = [[[*beginning, *tokens[start : start + own]] for start in part] for part in (starts, held_out)]
    for windows in found:
        check_vocabulary(windows, model.config)
    return torch.tensor(found[0]), torch.tensor(found[1])


def free_starts(tokens: int, length: int, taken: Sequence[int]) -> list[int]:
    """Where windows of `length` start that overlap neither one another nor those that start at `taken`."""
    free, place = [], 0
    for start in (*sorted(taken), tokens):
        while place + length <= start:
            free.append(place)
            place += length
        place = max(place, start + length)
    return free
