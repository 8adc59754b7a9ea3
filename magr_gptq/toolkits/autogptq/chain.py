"""The unquantized chain beside AutoGPTQ's, for `target="model"`; see `toolkits.block_passes`.

What is touched, why there, all undone by `Patches.undo`:

- `quantization.gptq.GPTQ.__init__`, `.add_batch`: AutoGPTQ makes one for every layer whose inputs it wants,
  and hands it those inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from auto_gptq.modeling._utils import get_module_by_name_prefix
from auto_gptq.quantization import gptq
from torch import Tensor

from magr_gptq.config import MagRConfig
from magr_gptq.reduction.target import Half
from magr_gptq.toolkits.block_passes import BlockPasses, led_along
from magr_gptq.toolkits.patching import Patches

_passes: ContextVar[BlockPasses | None] = ContextVar("magr_passes", default=None)


def apply(patches: Patches) -> None:
    """Tell a run's chain of AutoGPTQ's tasks."""
    patches.wrap(gptq.GPTQ, "__init__", _begin, ("self", "layer"))
    patches.wrap(gptq.GPTQ, "add_batch", _add, ("self", "inp", "out"))


def followed(magr: MagRConfig | None, model: Any, home: torch.device | None) -> AbstractContextManager[None]:
    """Lead the unquantized chain along a run of AutoGPTQ's model, where `magr` asks for it.

    Args:
        home: as for `BlockPasses`.
    """
    if magr is None or not magr.aims_at_model:
        return nullcontext()
    return led_along(_passes, get_module_by_name_prefix(model.model, model.layers_block_name), home)


def home_of(quantize: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.device | None:
    """Where AutoGPTQ keeps hidden states: on the CPU where it is asked to, else where a batch is run."""
    given = inspect.signature(quantize).bind(*args, **kwargs).arguments
    return None if given.get("cache_examples_on_gpu", True) else torch.device("cpu")


def halves_of(layer: Any) -> list[Half] | None:
    """What both chains add up to at this layer, which is rounded now; None where there is no chain."""
    passes = _passes.get()
    pairs = passes.end(layer) if passes else None
    return pairs.halves if pairs else None


def _begin(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, layer: Any) -> None:
        original(self, layer)
        if (passes := _passes.get()) is not None:
            passes.begin(layer)

    return init


def _add(original: Callable[..., None]) -> Callable[..., None]:
    def add_batch(self: Any, inp: Tensor, out: Tensor) -> None:
        original(self, inp, out)
        if (passes := _passes.get()) is not None:
            passes.add(self.layer, inp, out)

    return add_batch
