"""A layer's candidates through a toolkit's rounding: in one pass, or where memory is short one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from magr_gptq.rounding.layer import Layer, Rounded, Settled

# has the toolkit round rows, under their factors and by a Hessian, all of which it may overwrite
RoundRows = Callable[[Tensor, Tensor, Tensor], Rounded]


def settle(layer: Layer, hessian: Tensor, round_rows: RoundRows) -> Settled:
    """What the layer ends with; `hessian` is the toolkit's, which it gets back to overwrite."""
    try:
        return layer.settle(round_rows(layer.rows, layer.factors, layer.coupling(hessian)))
    except torch.OutOfMemoryError:
        if not layer.has_choice:
            raise
    # not above, where the traceback keeps what the toolkit has allocated
    return settle_apart(layer, round_rows)


def settle_apart(layer: Layer, round_rows: RoundRows) -> Settled:
    """The same for the memory of one candidate, which is that of plain GPTQ; slower."""
    device = layer.device
    warnings.warn(
        f"magr: {device} has no memory for all candidates of a layer: rounded one by one, chosen on the CPU",
        stacklevel=2,
    )
    settled = layer.settle(Rounded.joined([round_rows(*part).to("cpu") for part in layer.apart()]))
    return replace(settled, rounded=settled.rounded.to(device))
