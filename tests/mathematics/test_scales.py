"""Group scales refitted by least squares, against the least squares themselves."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import hessian_of, weight_of

from eval.lib.baselines import gptq_round, inverse_factor
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding import scales


def rounded(rows: int, columns: int, group_size: int):
    """W, GPTQ's Q, H, the group of every column and their number, in float64."""
    weight, hessian = weight_of(rows, columns).double(), hessian_of(columns).double()
    quantized = gptq_round(weight, inverse_factor(hessian), 3, group_size)
    return weight, quantized, hessian, torch.arange(columns) // group_size, -(-columns // group_size)


def fitted_factors(weight, quantized, hessian, group_of, groups):
    return scales.fitted_factors(weight @ hessian, quantized, hessian, group_of, groups)


def least_squares(weight, quantized, hessian, group_of, groups):
    """f by QR, row by row: X(Ŵ − Σ f_g·Q_g)ᵀ with XᵀX = H."""
    x = torch.linalg.cholesky(hessian).T
    member = torch.nn.functional.one_hot(group_of, groups).double()
    parts = (x[None] * quantized[:, None, :]) @ member  # [rows, columns, groups]
    return torch.linalg.lstsq(parts, (weight @ x.T)[..., None]).solution[..., 0]


def test_the_factors_are_those_of_least_squares(monkeypatch) -> None:
    monkeypatch.setattr(scales, "RIDGE", 1e-9)
    problem = rounded(12, 96, 16)
    found = fitted_factors(*problem)
    torch.testing.assert_close(found, least_squares(*problem), rtol=1e-5, atol=1e-5)
    assert (found - 1).abs().amax() > 0.05


def test_the_ridge_costs_next_to_nothing() -> None:
    weight, quantized, hessian, group_of, _ = problem = rounded(12, 96, 16)
    losses = [
        squared_norm(weight - quantized * factors[:, group_of], hessian)
        for factors in (fitted_factors(*problem), least_squares(*problem))
    ]
    assert (losses[0] <= losses[1] * 1.001).all()


def test_groups_of_any_columns_and_rows_in_chunks(monkeypatch) -> None:
    weight, quantized, hessian, group_of, groups = rounded(12, 90, 16)  # the last group is shorter
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    whole = fitted_factors(weight, quantized, hessian, group_of, groups)
    monkeypatch.setattr(scales, "CHUNK_ELEMENTS", 5 * 6**2)
    hessian = hessian[order][:, order]
    found = fitted_factors(weight[:, order], quantized[:, order], hessian, group_of[order].int(), groups)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)


def test_one_group_is_the_ratio_of_two_products() -> None:
    weight, quantized, hessian, group_of, groups = rounded(6, 48, 48)
    ratio = ((weight @ hessian) * quantized).sum(1) / squared_norm(quantized, hessian)
    found = fitted_factors(weight, quantized, hessian, group_of, groups)
    torch.testing.assert_close(found[:, 0], ratio, rtol=1e-4, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 80), size=st.integers(1, 40), seed=st.integers(0, 99),
    noise=st.sampled_from([0.0, 0.3, 3.0, 1e4]),
)  # fmt: skip
def test_no_row_gets_worse_and_no_factor_leaves_its_bounds(
    rows: int, columns: int, size: int, seed: int, noise: float
) -> None:
    weight, hessian = weight_of(rows, columns, seed), hessian_of(columns, seed)
    quantized = weight + noise * weight_of(rows, columns, seed + 1)
    group_of, groups = torch.arange(columns) // size, -(-columns // size)
    found = fitted_factors(weight, quantized, hessian, group_of, groups)
    assert found.shape == (rows, groups)
    assert ((found >= 0.5 - 1e-6) & (found <= 2 + 1e-6)).all()
    before, after = (
        squared_norm((weight - q).double(), hessian.double())
        for q in (quantized, quantized * found[:, group_of])
    )
    slack = 1e-5 * squared_norm(quantized.double(), hessian.double())  # a float32's rounding
    assert (after <= before + slack).all()


def test_groups_without_weight_or_input_keep_their_scale() -> None:
    weight, quantized, hessian, group_of, groups = rounded(4, 48, 16)
    hessian[:16], hessian[:, :16] = 0, 0
    quantized[1, 16:32] = 0
    quantized[2] = 0
    quantized[3, 40] = torch.nan
    found = fitted_factors(weight, quantized, hessian, group_of, groups)
    assert found[:, 0].eq(1).all()
    assert found[1, 1] == 1
    assert found[2:].eq(1).all()
    assert found[0, 1:].ne(1).all()
    assert found[1, 2] != 1
