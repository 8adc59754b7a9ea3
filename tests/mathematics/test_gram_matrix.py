"""Sums over tokens by one triangle, against a product in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magr_gptq.reduction.hessian import gram_matrix

pytestmark = pytest.mark.environments("modern", "autogptq")


@given(tokens=st.integers(0, 9), columns=st.integers(1, 23), seed=st.integers(0, 99))
def test_it_is_the_product_of_all_pairs(tokens: int, columns: int, seed: int) -> None:
    rows = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    found = gram_matrix(rows)
    wide = rows.double()
    # float32 rounds a sum of n products to n·2⁻²⁴ of their magnitudes
    bound = 1e-6 * (wide.abs().mT @ wide.abs()) + 1e-30
    assert ((found - wide.mT @ wide).abs() <= bound).all()
