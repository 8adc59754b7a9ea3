"""The windows of a text that models are scored on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magr_score.errors import ScoreError


def model_limit(config: Any) -> int:
    """The longest context, in tokens, that the config of transformers allows."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return sys.maxsize


def cut_windows(tokens: list[int], length: int, limit: int | None) -> Tensor:
    """The windows [n, length] of the tokens, without overlap; `limit` of them, spread evenly.

    Raises:
        ScoreError: there are too few tokens for one window.
    """
    count = len(tokens) // length
    if count == 0:
        raise ScoreError(f"the text has {len(tokens):,} tokens, too few for one window of {length:,}")
    windows = torch.tensor(tokens[: count * length]).view(count, length)
    if limit is None or limit >= count:
        return windows
    return windows[torch.arange(limit) * count // limit]


def read_windows(folder: str, text: str, seqlen: int, limit: int | None) -> Tensor:
    """The windows of a UTF-8 text file, by the tokenizer of the model in the folder.

    Args:
        seqlen: tokens a window; fewer where the model takes no more. limit: see `cut_windows`.
    """
    from transformers import AutoConfig, AutoTokenizer

    length = min(seqlen, model_limit(AutoConfig.from_pretrained(folder)))
    tokens = AutoTokenizer.from_pretrained(folder)(Path(text).read_text(encoding="utf-8"))["input_ids"]
    return cut_windows(tokens, length, limit)
