"""Whether what goes along with the weights can be saved, found out before the work rather than after it."""

from __future__ import annotations

import tempfile
from typing import Any

from magr_gptq.errors import InputError


def require_savable(what: Any, engine: str) -> None:
    """Save a config or a tokenizer to a scratch folder, as the toolkit has it in memory now.

    Raises:
        InputError: it can't be saved; names the engine, whose loading may have changed it.
    """
    with tempfile.TemporaryDirectory(prefix="magr-gptq-") as scratch:
        try:
            what.save_pretrained(scratch)
        # whatever a toolkit's changes make transformers raise
        except Exception as error:
            raise InputError(
                f"with {engine} the {type(what).__name__} of this model cannot be saved "
                f"({type(error).__name__}: {error}), which else shows when all layers are done; "
                f"use another --engine, or another release of {engine}"
            ) from error
