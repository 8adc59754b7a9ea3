"""How far the predictions of quantized models are from the unquantized model's, in nats a token.

Perplexity tells less than that where the unquantized model is itself wrong on the text: an error may then
be a gain.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from magr_score.loaders import LOADERS, device, dtype_on, load_transformers
from magr_score.perplexity import described
from magr_score.windows import read_windows

# of a window: two models' logits over all the vocabulary are held at a time
WINDOW_TOKENS_AT_ONCE = 2048
# of those, log-probabilities in float32 are made of so many at a time
POSITIONS_AT_ONCE = 512


def divergence(original: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v (log p_v − log q_v) in nats, of every position.

    Args:
        original: logits [..., vocabulary] whose softmax is p; logits: those whose softmax is q.

    Returns:
        [...] float32.
    """
    p, q = original.float().log_softmax(-1), logits.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def compare(original: Any, model: Any, windows: Tensor) -> dict[str, float]:
    """Perplexity and divergence of the model, means over every token after the first of its window.

    A batch of windows passes through both models, and nothing of it is kept.

    Args:
        windows: token ids [windows, tokens].
    """
    loss = kl = 0.0
    for rows in torch.split(windows, max(1, WINDOW_TOKENS_AT_ONCE // windows.shape[1])):
        given, from_original = (
            m(input_ids=rows.to(m.device), use_cache=False).logits for m in (model, original)
        )
        for row, wanted in enumerate(rows[:, 1:]):
            for place in range(0, len(wanted), POSITIONS_AT_ONCE):
                part = slice(place, min(place + POSITIONS_AT_ONCE, len(wanted)))
                q = given[row, part].float()
                loss += float(cross_entropy(q, wanted[part].to(q.device), reduction="sum"))
                kl += float(divergence(from_original[row, part].to(q.device), q).sum())
    count = windows[:, 1:].numel()
    return {"perplexity": math.exp(loss / count), "divergence": kl / count}


def scores(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Load the original, then load and compare one model after another, all in the original's dtype.

    Args:
        request: as `perplexity.scores` takes it, and original, the folder of the unquantized model.
    """
    dtype = dtype_on(device(), request["original"])
    original = load_transformers(request["original"], device(), dtype)
    for folder in request["models"]:
        start = time.perf_counter()
        windows = read_windows(folder, request, request["limit"])
        model = LOADERS[request["engine"]].load(folder, device(), dtype)
        yield compare(original, model, windows.tokens) | described(windows, request["engine"], start)
