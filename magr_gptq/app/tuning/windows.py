"""The windows to tune on, others than the quantization's where the text has others, and some to hold out.

Each layer was fitted to the tokens of the quantization, so that their predictions are far nearer to the
unquantized model's than those of any other text. What is left to mend shows on tokens that it did not see.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magr_gptq.app.inputs import Model, check_vocabulary
from magr_gptq.app.text import load_text, random_starts
from magr_gptq.app.tuning.job import TuneJob
from magr_gptq.errors import InputError
from magr_score.windows import model_limit, tokenize

# of the windows to tune on, how many are held out in addition: 4,096 tokens of the demo's
HELD_OUT_SHARE = 8


@dataclass(frozen=True)
class Windows:
    """Token ids [windows, tokens] to tune on, and to hold out.

    unseen: how many of those to tune on overlap none that `quantize` draws with the same options.
    """

    training: Tensor
    held_out: Tensor
    unseen: int


def draw_windows(model: Model, job: TuneJob) -> Windows:
    """As many windows as `quantize` draws, but others as far as the text has them, and more to hold out.

    Raises:
        InputError: the text is too short to have windows that overlap none of the others.
    """
    beginning, tokens = tokenize(model.tokenizer, load_text(job.calibration), job.cut)
    length = min(job.seqlen, model_limit(model.config))
    drawn = random_starts(tokens, job.samples, length, job.seed, len(beginning))
    own = length - len(beginning)
    free = free_starts(len(tokens), own, drawn)
    count = max(1, job.samples // HELD_OUT_SHARE)
    if len(free) < count:
        raise InputError(
            f"the calibration text has {len(tokens):,} tokens, too few for {job.samples} windows of "
            f"{length:,} and {count} others to hold out; give a longer text, or a smaller --samples or "
            "--seqlen"
        )
    held_out = [free[place * len(free) // count] for place in range(count)]
    others = sorted(set(free) - set(held_out))
    unseen = random.Random(job.seed).sample(others, min(len(others), job.samples))
    starts = [*unseen, *drawn[len(unseen) :]]
    found = [[[*beginning, *tokens[start : start + own]] for start in part] for part in (starts, held_out)]
    for windows in found:
        check_vocabulary(windows, model.config)
    return Windows(torch.tensor(found[0]), torch.tensor(found[1]), len(unseen))


def free_starts(tokens: int, length: int, taken: Sequence[int]) -> list[int]:
    """Where windows of `length` start that overlap neither one another nor those that start at `taken`."""
    free, place = [], 0
    for start in (*sorted(taken), tokens):
        while place + length <= start:
            free.append(place)
            place += length
        place = max(place, start + length)
    return free
