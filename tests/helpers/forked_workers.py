"""Quantizing and loading in fresh processes that are forked from one that has imported what toolkits need.

Imports take most of the seconds of a tiny model. A forked process has them, and nothing of what the
processes before it did.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from magr_gptq.app.cli import quantize as quantize_module
from magr_gptq.app.processes import EngineError
from magr_gptq.app.quantizing import verifying
from magr_gptq.app.quantizing.child import perform
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.errors import InputError
from magr_score.verify import verify

# not GPTQModel itself, which starts threads that a forked process would not have; nothing of magr_gptq, as
# loaders run without it
IMPORTED = [
    "datasets", "torchao", "transformers.generation.utils", "transformers.models.auto.modeling_auto",
    "transformers.quantizers.auto",
]  # fmt: skip
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(IMPORTED)


def fork(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns in a process of its own, or raises there."""
    with ProcessPoolExecutor(1, mp_context=_CONTEXT) as processes:
        return processes.submit(work, *given).result()


class ForkedWorker:
    """In place of the class `Worker`."""

    def quantize(self, job: Job, _: object) -> Outcome:
        """As a worker does it."""
        try:
            return Outcome(**fork(_perform, asdict(job)))
        except InputError:
            raise
        except Exception as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error


def _perform(request: dict[str, Any]) -> dict[str, Any]:
    # GPTQModel writes ./logs into the folder that it runs in
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        return dict(perform(request, lambda *_, **__: None))


def _verify(checkpoint: str, *, engine: str, predict: bool, log: Path) -> dict[str, Any]:
    try:
        return fork(verify, {"checkpoint": checkpoint, "engine": engine, "predict": predict})
    except Exception as error:
        raise EngineError(f"{type(error).__name__}: {error}") from error


def fork_processes(patch: pytest.MonkeyPatch) -> None:
    """Let the command `quantize` fork its processes."""
    patch.setattr(quantize_module, "Worker", lambda _: nullcontext(ForkedWorker()))
    patch.setattr(verifying, "verify", _verify)
