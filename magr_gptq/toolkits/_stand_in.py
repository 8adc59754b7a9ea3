"""Rows that llm-compressor observes and rounds in place of a module's weight."""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers.gptq.helpers import update_batch_qparams
from torch import Tensor

from magr_gptq.layer import Rounded


class StandIn(torch.nn.Module):
    """What llm-compressor's GPTQ reads from a module, and writes to it, for other rows than its own.

    The scheme and the observer are the module's. The rows are rounded as float32; the observer sees
    them in the module's dtype, so that the grid they are rounded to is the one that is stored.

    Args:
        module: the layer whose place this takes; only its observer is changed.
        rows: [rows, in] float32, any number of rows; overwritten by what they are rounded to.
        beta: factor on the quantization step of every row, [rows, 1].
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, module: Any, rows: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.quantization_scheme = module.quantization_scheme
        self.weight_observer = module.weight_observer
        shape = _observe(module.weight_observer, rows.to(module.weight), beta)
        self.register_buffer("weight", rows)
        self.register_buffer("weight_scale", rows.new_empty(shape))
        self.register_buffer("weight_zero_point", rows.new_empty(shape))

    def rounded(self) -> Rounded:
        """What the rows have become; compressed-tensors' codes are signed."""
        columns, groups = self.weight.shape[1], self.weight_scale.shape[1]
        group_of = torch.arange(columns, device=self.weight.device) // (columns // groups)
        lowest = -(2 ** (self.quantization_scheme.weights.num_bits - 1))
        return Rounded(self.weight, self.weight_scale, self.weight_zero_point, group_of, lowest)


def write_back(module: Any, rounded: Rounded) -> None:
    """Give a module its rounded weight, scales and zero points; offloaded or not."""
    # the weight that loaders compute from codes and the scale in the module's dtype, to the bit
    stored = rounded.scale.to(module.weight.dtype).float()
    steps = (rounded.weight / rounded.scale[:, rounded.group_of]).round()
    weight = steps * stored[:, rounded.group_of]
    update_batch_qparams(
        [module], weight[None], stored[None], rounded.zero[None], None, module.quantization_scheme.weights
    )


def _observe(observer: Any, rows: Tensor, beta: Tensor) -> torch.Size:
    """Let the observer see rows instead of what it saw before; its range shrinks to [β·min, β·max].

    The zero point −min/δ stays where it is, and llm-compressor clamps it to what can be stored.

    Returns:
        The shape of scales and zero points, [rows, groups].
    """
    # an observer of weights ignores all but the first
    del observer.min_vals, observer.max_vals
    observer(rows)
    observer.min_vals = (observer.min_vals * beta).to(rows.dtype)
    observer.max_vals = (observer.max_vals * beta).to(rows.dtype)
    shape: torch.Size = observer.min_vals.shape
    return shape
