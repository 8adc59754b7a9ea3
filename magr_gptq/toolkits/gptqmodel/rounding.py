"""GPTQModel's own rounding of one layer, on other rows than the layer's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from magr_gptq.rounding.rounded import Rounded
from magr_gptq.toolkits.quantizer import shrunk_grid


@dataclass(frozen=True)
class StandIn:
    """What the toolkit reads of the module that it rounds, with other rows than the module's own."""

    module: torch.nn.Module
    weight: Tensor
    target_device: torch.device | None


class RetriedError(Exception):
    """The toolkit has met NaN, and has rounded the layer's own weight in another way."""


class Rounding:
    """`quantize` of a task, with rows handed over as `module_copy` while a stand-in is its module.

    kind: sets this Hessian apart from others of the same input in the toolkit's cache of factors.
    rest: what the toolkit returned the last time, without the rows and their grids.
    retried: all that it returned where it went back to the layer's own weight.
    """

    def __init__(self, task: Any, quantize: Callable[[], Any], kind: str) -> None:
        self._task, self._quantize, self._kind = task, quantize, kind
        self._module, self._quantizer = task.module, task.quantizer

    def __call__(self, rows: Tensor, factors: Tensor, hessian: Tensor) -> Rounded:
        """Round the rows; RetriedError where the toolkit went back to the layer's own."""
        task = self._task
        task.H, task.module_copy, task.quantizer = hessian, rows.detach(), self._quantizer
        # a shape without memory: the toolkit never looks at the values; it cuts off columns that it padded
        columns = task._original_columns if task._tp_pad_cols else rows.shape[1]
        weight = rows.new_empty(()).expand(len(rows), columns)
        # frames above still name the rows: the toolkit, which permutes a copy, alone shall hold their memory
        rows.data = rows.new_empty(0)
        task.module = stand_in = StandIn(self._module, weight, getattr(self._module, "target_device", None))
        try:
            with shrunk_grid(self._quantizer, factors=factors, bits=task.qcfg.bits), self._own_key():
                weight, scale, zero, group_of, *self.rest = found = self._quantize()
            if task.module is not stand_in:
                self.retried = found
                raise RetriedError
            if weight.is_inference() and not torch.is_inference_mode_enabled():
                # optimum is not in that mode, and what was made in it can't be changed outside
                weight = weight.clone()
        finally:
            # where memory ran out, the rows must not stay
            task.module, task.module_copy = self._module, None
        # where the device's memory ran out the toolkit has made the grids on the CPU
        return Rounded(weight, scale, zero, group_of).to(weight.device)

    @contextmanager
    def _own_key(self) -> Iterator[None]:
        """Let layers share the toolkit's factor only where MagR has changed their Hessians alike."""
        task, key = self._task, type(self._task)._shared_factor_key
        task._shared_factor_key = lambda ordering: (*key(task, ordering), self._kind)
        try:
            yield
        finally:
            del task._shared_factor_key
