"""An order of columns to round in that a checkpoint does not show: its groups stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.groups import group_views
from magr_gptq.rounding.rounded import Rounded


def importance_order(diagonal: Tensor, group_size: int) -> Tensor:
    """Most important columns first, group by group: [in] int64.

    Groups are sorted by their largest diagonal entry, and the columns of a group by theirs, so that the
    columns that matter most are rounded while many others can still make up for it. A shorter last group
    stays last. (T. Gafni, A. Karnieli, Y. Hanani, arXiv 2505.14638, call it group-aware reordering.)

    Args:
        diagonal: of the Hessian, [in]. group_size: −1 is the whole row.
    """
    whole, *tail = group_views(diagonal[None], group_size)
    values, within = whole[0].sort(dim=-1, descending=True, stable=True)
    groups = values[:, 0].argsort(descending=True, stable=True)
    places = torch.arange(values.numel(), device=diagonal.device).view_as(within)
    order = places.gather(1, within)[groups].flatten()
    rest = torch.arange(len(order), len(diagonal), device=diagonal.device)
    return torch.cat([order, rest]) if tail else order


def back_in_place(rounded: Rounded, order: Tensor) -> Rounded:
    """What columns that were rounded in this order become in their own; groups were consecutive in both."""
    order = order.to(rounded.weight.device)
    first = _first_of_groups(rounded.group_of)
    # a group of the order is a group of the original, which one its first column tells
    groups = rounded.group_of[order[first]].argsort()
    return Rounded(
        weight=rounded.weight[:, order.argsort()],
        scale=rounded.scale[:, groups],
        zero=rounded.zero[:, groups],
        group_of=rounded.group_of,
        lowest=rounded.lowest,
    )


def _first_of_groups(group_of: Tensor) -> Tensor:
    """The first column of every group of consecutive columns, [groups]."""
    starts = torch.ones_like(group_of, dtype=torch.bool)
    starts[1:] = group_of[1:] != group_of[:-1]
    return starts.nonzero().squeeze(1)
