"""The shrunk grid against what it promises: β times the step, storable zero points, nothing clipped anew."""

from __future__ import annotations

import pytest
import torch

from magr_gptq.rounding.step import shrink_grid

SCALE = torch.tensor([[0.1], [0.2], [0.4], [0.8]])
ZERO = torch.tensor([[0.0], [1.0], [2.0], [3.0]])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_a_lowest_zero_only_the_step_shrinks(bits: int) -> None:
    scale, zero = shrink_grid(SCALE, ZERO, beta=0.8, bits=bits)
    torch.testing.assert_close(scale, 0.8 * SCALE)
    assert torch.equal(zero, ZERO)


def test_beta_is_one_a_row() -> None:
    betas = torch.tensor([[0.5], [0.75], [0.9], [1.0]])
    scale, _ = shrink_grid(SCALE.expand(4, 3), ZERO.expand(4, 3), beta=betas, bits=2)
    torch.testing.assert_close(scale, betas * SCALE.expand(4, 3))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_raised_zero_point_keeps_the_largest_weight_covered(bits: int) -> None:
    scale, zero = shrink_grid(SCALE, ZERO, beta=0.9, bits=bits, lowest_zero=1)
    assert zero.tolist() == [[1.0], [1.0], [2.0], [3.0]]
    top = 2**bits - 1
    torch.testing.assert_close(scale * (top - zero), 0.9 * SCALE * (top - ZERO))


def test_nothing_is_changed_in_place() -> None:
    scale, zero = SCALE.clone(), ZERO.clone()
    shrink_grid(scale, zero, beta=0.5, bits=2, lowest_zero=1)
    assert torch.equal(scale, SCALE)
    assert torch.equal(zero, ZERO)
