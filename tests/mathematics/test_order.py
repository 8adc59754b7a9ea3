"""The order of columns that a checkpoint does not show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magr_gptq.rounding.order import back_in_place, importance_order
from magr_gptq.rounding.rounded import Rounded


@given(columns=st.integers(1, 60), group_size=st.sampled_from([-1, 1, 7, 16]), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_groups_stay_whole_and_the_most_important_come_first(columns, group_size, seed) -> None:
    diagonal = torch.rand(columns, generator=torch.Generator().manual_seed(seed))
    order = importance_order(diagonal, group_size)
    assert order.sort().values.tolist() == list(range(columns))
    size = columns if group_size == -1 else group_size
    groups = [diagonal[order[start : start + size]] for start in range(0, columns, size)]
    for start in range(0, columns, size):
        members = order[start : start + size]
        assert len(set((members // size).tolist())) == 1
    whole = [group for group in groups if len(group) == min(size, columns)]
    for group in whole:
        assert torch.equal(group, group.sort(descending=True).values)
    firsts = torch.stack([group[0] for group in whole])
    assert torch.equal(firsts, firsts.sort(descending=True).values)
    if columns > size and columns % size:
        assert (order[-(columns % size) :] // size).unique().tolist() == [columns // size]


@pytest.mark.parametrize(("columns", "group_size"), [(96, 32), (96, -1), (70, 32), (8, 1)])
def test_what_was_rounded_in_another_order_comes_back_with_its_own_scales(columns, group_size) -> None:
    generator = torch.Generator().manual_seed(0)
    size = columns if group_size == -1 else group_size
    group_of = torch.arange(columns) // size
    groups = int(group_of[-1]) + 1
    order = importance_order(torch.rand(columns, generator=generator), group_size)
    codes = torch.randint(0, 4, (5, columns), generator=generator).float()
    scale, zero = torch.rand(5, groups, generator=generator) + 0.5, torch.full((5, groups), 2.0)
    own = Rounded((codes - 2) * scale[:, group_of], scale, zero, group_of)
    # what a toolkit makes of the reordered columns: the groups of the order, numbered as they come
    theirs = group_of[order[torch.arange(0, columns, size)]]
    shuffled = Rounded(own.weight[:, order], scale[:, theirs], zero[:, theirs], group_of)
    back = back_in_place(shuffled, order)
    assert torch.equal(back.weight, own.weight)
    assert torch.equal(back.scale, own.scale)
    assert torch.equal(back.group_of, group_of)
