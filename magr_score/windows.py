"""The windows of a text that models are scored on, and quantized with.

Many models were trained with a token before every text, and their tokenizers add it: Gemma's <bos>, Llama's
<s>. Without it such a model is lost for the first tokens, or, as Gemma is, for all of them. So each window
begins as a text does, and the rest of it is the text's own tokens. GPTQ's own code cuts one long stream
instead, where the first window alone has that token; its published figures, and the paper's, are of such
windows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magr_score.errors import ScoreError

# each window as the tokenizer makes a text, or cuts of one text
TOKENIZER, STREAM = "tokenizer", "stream"
CUTS = (TOKENIZER, STREAM)


@dataclass(frozen=True)
class Windows:
    """Of one text. tokens: ids [windows, tokens]. cut: of `CUTS`. beginning: see `spelled`."""

    tokens: Tensor
    cut: str
    beginning: str


def model_limit(config: Any) -> int:
    """The longest context, in tokens, that the config of transformers allows."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return sys.maxsize


def tokenize(tokenizer: Any, text: str, cut: str) -> tuple[list[int], list[int]]:
    """The tokens that every window of a text begins with, and the text's own.

    Args:
        tokenizer: of transformers. cut: of `CUTS`; a stream keeps what stands before its first word.
    """
    # verbose: transformers would warn that a whole text is too long for the model
    if cut == STREAM:
        return [], tokenizer(text, verbose=False)["input_ids"]
    return _beginning(tokenizer), tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _beginning(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text; what it puts after one has no place in a window."""
    probe: list[int] = tokenizer("a")["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = range(len(probe) - len(bare) + 1)
    return probe[: next(start for start in starts if probe[start : start + len(bare)] == bare)]


def spelled(tokenizer: Any, beginning: list[int]) -> str:
    """A beginning as people write it, such as <bos>; empty where windows begin with the text's own tokens."""
    return "".join(tokenizer.convert_ids_to_tokens(beginning))


def cut_windows(
    tokens: Sequence[int], length: int, limit: int | None, beginning: Sequence[int] = ()
) -> Tensor:
    """The windows [n, length] of the tokens, without overlap; `limit` of them, spread evenly.

    Args:
        beginning: tokens that every window begins with; they count towards its length.

    Raises:
        ScoreError: there are too few tokens for one window.
    """
    own = length - len(beginning)
    count = len(tokens) // own
    if count == 0:
        raise ScoreError(f"the text has {len(tokens):,} tokens, too few for one window of {length:,}")
    windows = torch.tensor(tokens[: count * own]).view(count, own)
    windows = torch.cat([torch.tensor(beginning, dtype=windows.dtype).expand(count, -1), windows], dim=1)
    if limit is None or limit >= count:
        return windows
    return windows[torch.arange(limit) * count // limit]


def read_windows(folder: str, request: dict[str, Any], limit: int | None) -> Windows:
    """The windows of a UTF-8 text file, by the tokenizer of the model in the folder.

    Args:
        request: text, the file; seqlen, tokens a window, fewer where the model takes no more; cut, of
            `CUTS`, the first if left out.
        limit: see `cut_windows`.
    """
    from transformers import AutoConfig, AutoTokenizer

    length = min(request["seqlen"], model_limit(AutoConfig.from_pretrained(folder)))
    tokenizer, cut = AutoTokenizer.from_pretrained(folder), request.get("cut", TOKENIZER)
    beginning, tokens = tokenize(tokenizer, Path(request["text"]).read_text(encoding="utf-8"), cut)
    return Windows(cut_windows(tokens, length, limit, beginning), cut, spelled(tokenizer, beginning))
