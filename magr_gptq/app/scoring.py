"""What `magr_score` measures, in fresh processes that never import magr_gptq."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magr_gptq.app.processes import ask_once
from magr_score.windows import TOKENIZER

VANILLA = ("-I", "-m", "magr_score")


def score(
    model: str, text: Path, *, engine: str, seqlen: int, limit: int | None, log: Path, cut: str = TOKENIZER
) -> dict[str, Any]:
    """What `magr_score.perplexity` finds; the toolkit's output is appended to `log`.

    Args:
        cut: of `magr_score.windows.CUTS`, how windows begin.
    """
    return score_all([model], text, engine=engine, seqlen=seqlen, limit=limit, log=log, cut=cut)[0]


def score_all(
    models: Sequence[str],
    text: Path,
    *,
    engine: str,
    seqlen: int,
    limit: int | None,
    log: Path,
    cut: str = TOKENIZER,
) -> list[dict[str, Any]]:
    """What `magr_score.perplexity` finds for each model, one after another in the same process."""
    request = {
        "models": models, "text": str(text), "engine": engine, "seqlen": seqlen, "limit": limit, "cut": cut,
    }  # fmt: skip
    return _scores("perplexity", request, log)


def diverge(
    original: str,
    model: str,
    text: Path,
    *,
    engine: str,
    seqlen: int,
    limit: int | None,
    log: Path,
    cut: str = TOKENIZER,
) -> dict[str, Any]:
    """What `magr_score.divergence` finds: perplexity, and divergence from the unquantized model."""
    found = diverge_all(original, [model], text, engine=engine, seqlen=seqlen, limit=limit, log=log, cut=cut)
    return found[0]


def diverge_all(
    original: str,
    models: Sequence[str],
    text: Path,
    *,
    engine: str,
    seqlen: int,
    limit: int | None,
    log: Path,
    cut: str = TOKENIZER,
) -> list[dict[str, Any]]:
    """What `magr_score.divergence` finds for each model, one after another in the same process."""
    request = {
        "original": original, "models": models, "text": str(text), "engine": engine, "seqlen": seqlen,
        "limit": limit, "cut": cut,
    }  # fmt: skip
    return _scores("divergence", request, log)


def _scores(quantity: str, request: dict[str, Any], log: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask_once([*VANILLA, quantity], request, log)["scores"]
    return found


def examine(
    checkpoint: str, original: str, text: Path, *, engine: str, seqlen: int, log: Path, cut: str = TOKENIZER
) -> dict[str, Any]:
    """What `magr_score.examine` finds: the cost of inference, and every layer's error."""
    request = {
        "checkpoint": checkpoint, "original": original, "text": str(text), "engine": engine, "seqlen": seqlen,
        "cut": cut,
    }  # fmt: skip
    return ask_once([*VANILLA, "examine"], request, log)


def zero_shot(tasks: list[str], log: Path, **checkpoint: str) -> dict[str, Any]:
    """What lm-eval finds; without a checkpoint, only whether it has all that it needs."""
    return ask_once([*VANILLA, "zero-shot"], {"tasks": tasks, **checkpoint}, log)


def verify(checkpoint: str, *, engine: str, predict: bool, log: Path) -> dict[str, Any]:
    """What `magr_score.verify` finds: tensors that a loader has from nowhere, and how far it is off."""
    request = {"checkpoint": checkpoint, "engine": engine, "predict": predict}
    return ask_once([*VANILLA, "verify"], request, log)
