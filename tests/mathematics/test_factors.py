"""The factor on a group's step, against trying them one by one."""

from __future__ import annotations

import pytest
import torch
from problems import weight_of

from magr_gptq.rounding.step import least_error_factor

pytestmark = pytest.mark.environments("modern", "autogptq")

FACTORS = (1.0, 0.9, 0.8, 0.7)


def error(row: torch.Tensor, step: float, zero: float, lowest: int, highest: int) -> float:
    """Of a row on one grid, point by point."""
    points = torch.tensor([(code - zero) * step for code in range(lowest, highest + 1)])
    return float((row[:, None] - points).abs().amin(1).square().sum())


@pytest.mark.parametrize(("lowest", "middle"), [(0, 2.0), (-2, 0.0), (0, 1.0)])
def test_it_is_the_best_of_the_row_own_factors(lowest: int, middle: float) -> None:
    weight = weight_of(40, 24)
    scale = weight.abs().amax(1, keepdim=True) / 1.5
    zero = torch.full_like(scale, middle)
    factors = torch.tensor(FACTORS).repeat(40, 1)
    factors[::2] *= 0.5
    found = least_error_factor(weight, scale, zero, factors, lowest=lowest, highest=lowest + 3)
    assert found.shape == (40, 1)
    for row in range(40):
        errors = [
            error(weight[row], float(scale[row]) * f, middle, lowest, lowest + 3)
            for f in factors[row].tolist()
        ]
        chosen = factors[row].tolist().index(float(found[row]))
        assert errors[chosen] == pytest.approx(min(errors), rel=1e-5)
    assert len(found[1::2].unique()) > 2


def test_groups_side_by_side_are_groups_one_by_one() -> None:
    weight = weight_of(6, 32).unflatten(1, (4, 8))
    scale = weight.abs().amax(-1, keepdim=True) / 1.5
    zero, factors = torch.full_like(scale, 2.0), torch.tensor(FACTORS).expand(6, -1)
    together = least_error_factor(weight, scale, zero, factors[:, None], lowest=0, highest=3)
    for group in range(4):
        alone = least_error_factor(
            weight[:, group], scale[:, group], zero[:, group], factors, lowest=0, highest=3
        )
        assert torch.equal(together[:, group], alone)


def test_one_factor_is_taken_and_zeros_take_the_first() -> None:
    weight, one = torch.zeros(3, 8), torch.ones(3, 1)
    given = torch.tensor([[0.8], [0.9], [1.0]])
    assert torch.equal(least_error_factor(weight_of(3, 8), one, one, given, lowest=0, highest=3), given)
    factors = torch.tensor(FACTORS).expand(3, -1)
    assert least_error_factor(weight, one, one, factors, lowest=0, highest=3).eq(1).all()
