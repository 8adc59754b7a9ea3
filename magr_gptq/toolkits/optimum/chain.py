"""The unquantized chain beside optimum's, for `target="model"`; see `toolkits.block_passes`.

What is touched, why there, all undone by `Patches.undo`:

- `GPTQ.__init__`, `GPTQ.add_batch`, `GPTQ.fasterquant` of GPTQModel: optimum makes one for every layer whose
  inputs it wants, hands it those inputs, and has it round the layer.
- `GPTQ.process_batch`: see `toolkits.gptqmodel.gram`.

Without `cache_block_outputs` optimum runs all blocks again for each; then there is no chain.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from gptqmodel.quantization.gptq import GPTQ
from optimum.gptq.utils import get_block_name_with_pattern, get_device

from magr_gptq.config import MagRConfig
from magr_gptq.toolkits.block_passes import BlockPasses, led_along
from magr_gptq.toolkits.gptqmodel import gram
from magr_gptq.toolkits.patching import Patches

_passes: ContextVar[BlockPasses | None] = ContextVar("magr_passes", default=None)


def apply(patches: Patches) -> None:
    """Tell a run's chain of optimum's tasks."""
    gram.apply(patches)
    for name, around in (("__init__", _begin), ("add_batch", _add), ("fasterquant", _end)):
        patches.wrap(GPTQ, name, around)


def followed(quantizer: Any, model: Any) -> AbstractContextManager[None]:
    """Lead the unquantized chain along a run of this GPTQQuantizer, where its `magr` asks for it."""
    magr = MagRConfig.parse(quantizer.magr)
    if magr is None or not (magr.aims_at_model and quantizer.cache_block_outputs):
        return nullcontext()
    name = quantizer.block_name_to_quantize or get_block_name_with_pattern(model)
    blocks = model.get_submodule(name)
    return led_along(_passes, blocks, _home(blocks[0]))


def _home(block: torch.nn.Module) -> torch.device:
    """Where optimum keeps hidden states: where it finds the first block, which may be moved to be run."""
    device: torch.device = get_device(block)
    # weights that accelerate keeps away are brought to the CPU first
    return torch.device("cpu") if device.type == "meta" else device


def _begin(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        original(self, module, *args, **kwargs)
        if (passes := _passes.get()) is not None:
            passes.begin(module)

    return init


def _add(original: Callable[..., None]) -> Callable[..., None]:
    def add_batch(self: Any, inp: Any, out: Any, *args: Any, **kwargs: Any) -> None:
        with gram.of_batch() as made:
            original(self, inp, out, *args, **kwargs)
        if (passes := _passes.get()) is not None:
            passes.add(self.module, inp, out, *made)

    return add_batch


def _end(original: Callable[..., Any]) -> Callable[..., Any]:
    def fasterquant(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (passes := _passes.get()) is not None:
            # where GPTQModel's adapter takes them from
            self.magr_pairs = passes.end(self.module)
        return original(self, *args, **kwargs)

    return fasterquant
