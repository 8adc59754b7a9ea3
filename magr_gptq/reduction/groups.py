"""Columns that share a scale, as views: whole groups first, then the shorter last one."""

from __future__ import annotations

import torch
from torch import Tensor


def group_views(matrix: Tensor, group_size: int) -> list[Tensor]:
    """Views [..., rows, groups, size] that together cover matrix [..., rows, columns].

    One view where group_size divides the columns, or is −1 (the whole row is one group);
    two where the last group is shorter.
    """
    columns = matrix.shape[-1]
    size = columns if group_size == -1 else min(group_size, columns)
    whole = columns - columns % size
    views = [torch.unflatten(matrix[..., :whole], -1, (whole // size, size))]
    if whole < columns:
        views.append(matrix[..., whole:].unsqueeze(-2))
    return views


def largest_magnitude(values: Tensor) -> Tensor:
    """max |v| along the last dimension, without a copy of |v|."""
    return torch.maximum(values.amax(-1), values.amin(-1).neg_())


def group_count(columns: int, group_size: int) -> int:
    """How many groups a row of this many columns has."""
    return 1 if group_size == -1 else -(-columns // group_size)
