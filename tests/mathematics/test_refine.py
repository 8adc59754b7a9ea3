"""Coordinate descent, the gain and the choice per row, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import hessian_of, weight_of

from eval.lib.baselines import gptq_round, grid_step, inverse_factor
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.choice import criterion
from magr_gptq.rounding.kernels.plain import plain_sweep_block_
from magr_gptq.rounding.scales import balanced_gain
from magr_gptq.rounding.sweep import coordinate_descent


def rounded(rows: int, columns: int, seed: int, bits: int = 2):
    """W, H, GPTQ's Q, and the scale and zero point of every weight, in float64."""
    weight, hessian = weight_of(rows, columns, seed).double(), hessian_of(columns, seed).double()
    quantized = gptq_round(weight, inverse_factor(hessian), bits)
    scale = grid_step(weight, bits).expand_as(weight)
    return weight, hessian, quantized, scale, torch.full_like(scale, 2 ** (bits - 1))


def one_by_one(weight, hessian, quantized, scale, zero, top: int):
    """A sweep that takes, at each column, the best of all codes by the whole loss."""
    found = quantized.clone()
    for j in range(weight.shape[1]):
        for row in range(len(weight)):
            best = squared_norm((weight - found)[row : row + 1], hessian).item()
            for code in range(top + 1):
                trial = found[row : row + 1].clone()
                trial[0, j] = (code - zero[row, j]) * scale[row, j]
                loss = squared_norm(weight[row : row + 1] - trial, hessian).item()
                if loss < best * (1 - 1e-12):
                    best, found[row] = loss, trial[0]
    return found


def test_a_sweep_takes_the_best_code_of_every_column() -> None:
    weight, hessian, quantized, scale, zero = rounded(3, 150, seed=1)
    found = coordinate_descent(quantized, weight, hessian, scale, zero, lowest=0, highest=3, sweeps=1)
    wanted = one_by_one(weight, hessian, quantized, scale, zero, top=3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 300), seed=st.integers(0, 99), bits=st.integers(2, 4))
def test_no_row_gets_worse_and_all_stay_on_their_grid(rows: int, columns: int, seed: int, bits: int) -> None:
    weight, hessian, quantized, scale, zero = rounded(rows, columns, seed, bits)
    found = coordinate_descent(
        quantized, weight, hessian, scale, zero, lowest=0, highest=2**bits - 1, sweeps=3
    )
    before, after = squared_norm(weight - quantized, hessian), squared_norm(weight - found, hessian)
    assert (after <= before * (1 + 1e-12)).all()
    codes = found / scale + zero
    torch.testing.assert_close(codes, codes.round().clamp(0, 2**bits - 1), rtol=0, atol=1e-9)


def test_more_sweeps_move_nothing_once_none_did() -> None:
    weight, hessian, quantized, scale, zero = rounded(4, 64, seed=0)
    settled = coordinate_descent(quantized, weight, hessian, scale, zero, lowest=0, highest=3, sweeps=100)
    again = coordinate_descent(settled, weight, hessian, scale, zero, lowest=0, highest=3, sweeps=1)
    assert torch.equal(again, settled)
    assert not torch.equal(settled, quantized)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sweep_leaves_the_residual_as_it_is(rows: int) -> None:
    weight, hessian, quantized, scale, zero = rounded(rows, 9, seed=3)
    residual = (weight - quantized) @ hessian
    before = residual.clone()
    moves = plain_sweep_block_(quantized, residual, hessian, scale, zero, lowest=0, highest=3)
    assert moves.any()
    assert torch.equal(residual, before)


def test_every_row_may_have_its_own_highest_code() -> None:
    weight, hessian, _, scale, zero = rounded(4, 150, seed=2, bits=3)
    quantized = torch.zeros_like(weight)
    highest = torch.tensor([[5.0], [7.0], [6.0], [7.0]], dtype=torch.float64)
    given = {"lowest": 0, "sweeps": 2}
    found = coordinate_descent(quantized, weight, hessian, scale, zero, highest=highest, **given)
    for row, top in enumerate(highest[:, 0].int().tolist()):
        one = slice(row, row + 1)
        alone = coordinate_descent(
            quantized[one], weight[one], hessian, scale[one], zero[one], highest=top, **given
        )
        torch.testing.assert_close(found[one], alone, rtol=0, atol=1e-12)
    assert (found / scale + zero).amax(1).round().tolist() == highest[:, 0].tolist()


def test_steps_too_small_for_float32_do_not_move() -> None:
    weight, hessian, quantized, scale, zero = (x.float() for x in rounded(2, 12, seed=0))
    scale, quantized, hessian = scale.clone(), quantized.clone(), hessian.clone()
    scale[:, 5], quantized[:, 5], weight[:, 5] = 1e-20, 0, 0
    hessian[5], hessian[:, 5] = 0, 0
    hessian[5, 5] = 1e-20
    found = coordinate_descent(quantized, weight, hessian, scale, zero, lowest=0, highest=3, sweeps=1)
    assert found.isfinite().all()
    assert found[:, 5].eq(0).all()


def test_columns_without_input_do_not_move() -> None:
    weight, hessian, quantized, scale, zero = rounded(4, 40, seed=0)
    hessian[7], hessian[:, 7] = 0, 0
    found = coordinate_descent(quantized, weight, hessian, scale, zero, lowest=0, highest=3, sweeps=2)
    assert torch.equal(found[:, 7], quantized[:, 7])
    assert found.isfinite().all()


@pytest.mark.parametrize("kappa", [0.0, 1.0, 3.0])
def test_the_gain_is_the_least_of_error_and_extra_bias(kappa: float) -> None:
    weight, hessian, quantized, *_ = rounded(6, 48, seed=3)
    x = torch.linalg.cholesky(hessian).T  # XᵀX = H
    wanted, given = weight @ x.T, quantized @ x.T
    given *= ((given * wanted).sum(1) / given.square().sum(1))[:, None]  # scales that are fitted

    def cost(gain: torch.Tensor) -> torch.Tensor:
        outputs = gain[:, None] * given
        slopes = (outputs * wanted).sum(1) / wanted.square().sum(1)
        return (wanted - outputs).square().sum(1) + kappa * ((1 - slopes)[:, None] * wanted).square().sum(1)

    fitted = torch.linalg.solve(x, given.T).T
    gain = balanced_gain(weight @ hessian, weight, fitted, kappa)
    assert (cost(gain) < torch.minimum(cost(gain * 1.001), cost(gain * 0.999))).all()


def test_without_end_the_gain_makes_the_outputs_slope_one() -> None:
    weight, hessian, quantized, *_ = rounded(6, 48, seed=3)
    gain = balanced_gain(weight @ hessian, weight, quantized, kappa=1e12)
    slopes = gain * torch.linalg.vecdot(weight @ hessian, quantized) / squared_norm(weight, hessian)
    torch.testing.assert_close(slopes, torch.ones(6, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("quantized", [0.0, -1.0, -0.1, 100.0])
def test_a_lost_row_keeps_its_scale(quantized: float) -> None:
    weight, hessian = torch.ones(1, 8), hessian_of(8)
    assert balanced_gain(weight @ hessian, weight, quantized * weight).item() == 1


def test_choose_counts_shrinkage_extra_and_prefers_the_first_of_equals() -> None:
    error = torch.tensor([[2.0, 1.0, 1.0, float("nan")], [1.0, 1.0, 1.0, 5.0]])
    shrinkage = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.4, 0.1, 0.0, 0.0]])
    assert criterion(error, shrinkage, 3.0).argmin(0).tolist() == [0, 0, 0, 1]
    assert criterion(error, shrinkage, 2.0).argmin(0).tolist() == [1, 0, 0, 1]
