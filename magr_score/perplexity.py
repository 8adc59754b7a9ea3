"""Perplexity of model folders, by GPTQ's protocol.

The text is tokenized whole and cut into windows without overlap, see `magr_score.windows`; the result is
the exponent of the mean negative log-likelihood of every token that follows another in its window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from magr_score.loaders import LOADERS, device, dtype_on
from magr_score.windows import Windows, read_windows

TOKENS_AT_ONCE = 4096


@torch.no_grad()
def perplexity(model: Any, windows: Tensor) -> float:
    """exp of the mean negative log-likelihood of every token after the first of its window.

    Args:
        windows: token ids [windows, tokens].
    """
    total = 0.0
    for rows in torch.split(windows, max(1, TOKENS_AT_ONCE // windows.shape[1])):
        logits = model(input_ids=rows.to(model.device), use_cache=False).logits[:, :-1].float()
        wanted = rows[:, 1:].to(logits.device)
        total += float(cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def scores(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Load, tokenize and measure one model after another.

    Args:
        request: models, folders; engine, of `LOADERS`; limit, and text, seqlen and cut, see `read_windows`.
    """
    for folder in request["models"]:
        start = time.perf_counter()
        windows = read_windows(folder, request, request["limit"])
        model = LOADERS[request["engine"]].load(folder, device(), dtype_on(device(), folder))
        found = {"perplexity": perplexity(model, windows.tokens)}
        yield found | described(windows, request["engine"], start)


def described(windows: Windows, engine: str, start: float) -> dict[str, Any]:
    """How a measurement was made that began at `start`."""
    return {
        "windows": len(windows.tokens),
        "seqlen": windows.tokens.shape[1],
        "tokens": windows.tokens.numel(),
        "cut": windows.cut,
        "beginning": windows.beginning,
        "seconds": round(time.perf_counter() - start, 2),
        "engine": engine,
        "device": device().partition(":")[0],
        "versions": LOADERS[engine].versions(),
    }
