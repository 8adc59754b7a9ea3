"""Rounding to nearest in a toolkit's place, for layers of any width, group and scale."""

from __future__ import annotations

import torch
from prepared import Prepared

from magr_gptq.reduction.groups import group_count
from magr_gptq.rounding.rounded import Rounded


def round_rows(layer: Prepared, bits: int, group_size: int = -1) -> Rounded:
    """The layer's rows on symmetric grids, one a group, each with the last of its factors on the step."""
    columns = layer.rows.shape[1]
    group_of = torch.arange(columns) // (columns if group_size == -1 else group_size)
    groups = [layer.rows[:, group_of == group] for group in range(group_count(columns, group_size))]
    scale = torch.stack([group.abs().amax(1) for group in groups], dim=1) * 2 / (2**bits - 1)
    scale = scale * layer.factors[:, -1:]
    scale = torch.where(scale == 0, 1.0, scale)
    zero = torch.full_like(scale, 2 ** (bits - 1))
    steps, middle = scale[:, group_of], zero[:, group_of]
    codes = (layer.rows / steps + middle).round().clamp(0, 2**bits - 1)
    return Rounded((codes - middle) * steps, scale, zero, group_of)
