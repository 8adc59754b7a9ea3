"""Rows that llm-compressor observes and rounds in place of a module's weight."""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers.gptq.helpers import update_batch_qparams
from torch import Tensor

from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.step import least_error_factor


class StandIn(torch.nn.Module):
    """What llm-compressor's GPTQ reads from a module, and writes to it, for other rows than its own.

    The scheme and the observer are the module's. The rows are rounded as float32; the observer sees
    them in the module's dtype, so that the grid they are rounded to is the one that is stored.

    Args:
        module: the layer whose place this takes; only its observer is changed.
        rows: [rows, in] float32, any number of rows; overwritten by what they are rounded to.
        factors: those on the quantization step that each group of a row chooses from, [rows, factors].
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, module: Any, rows: Tensor, factors: Tensor) -> None:
        super().__init__()
        self.quantization_scheme = module.quantization_scheme
        bits = module.quantization_scheme.weights.num_bits
        self.weight_observer = _ChosenGrids(module.weight_observer, rows.to(module.weight), factors, bits)
        shape = self.weight_observer.shape
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


def observe_alone(observer: Any, rows: Tensor) -> None:
    """Let an observer know these rows and no others."""
    # one of weights ignores all but the first, and forgets those when it has made grids
    for seen in ("min_vals", "max_vals"):
        if hasattr(observer, seen):
            delattr(observer, seen)
    observer(rows)


class _ChosenGrids:
    """In an observer's place: the grids that it finds for the rows, with the factor that suits each best.

    The range shrinks about zero, so the zero point stays where it is; llm-compressor clamps it to what
    can be stored.
    """

    def __init__(self, observer: Any, rows: Tensor, factors: Tensor, bits: int) -> None:
        observe_alone(observer, rows)
        self._qparams: dict[str, Tensor] = observer.get_qparams()
        scale, zero = self._qparams["scale"], self._qparams["zero_point"]
        half = 2 ** (bits - 1)
        best = least_error_factor(
            rows.float().unflatten(1, (scale.shape[1], -1)), scale[..., None].float(), zero[..., None],
            factors[:, None], lowest=-half, highest=half - 1,
        )  # fmt: skip
        self._qparams["scale"] = (scale * best[..., 0]).to(scale)

    @property
    def shape(self) -> torch.Size:
        """Of scales and zero points, [rows, groups]."""
        shape: torch.Size = self._qparams["scale"].shape
        return shape

    def get_qparams(self) -> dict[str, Tensor]:
        """What llm-compressor asks an observer for."""
        return self._qparams
