"""A layer prepared by settings given one by one, with its candidate rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from magr_gptq import MagRConfig
from magr_gptq.rounding.kept import Kept
from magr_gptq.rounding.layer import Layer, prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.settle import Settled, settle


@dataclass(frozen=True)
class Prepared:
    """A layer and the rows that a toolkit is to round in its weight's place."""

    layer: Layer
    rows: Tensor

    @property
    def factors(self) -> Tensor:
        """Those on the rows' steps."""
        return self.layer.factors

    def settle(self, rounded: Rounded) -> Settled:
        """What the layer ends with."""
        return settle(self.layer, Kept.of(self.layer, rounded))


def prepared(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int = -1,
    order: Tensor | None = None,
    config: MagRConfig | None = None,
) -> Prepared:
    """The layer under these settings."""
    plan = (config or MagRConfig()).resolve(bits, group_size, order)
    layer, rows = prepare(weight, hessian, plan)
    return Prepared(layer, torch.cat(rows))
