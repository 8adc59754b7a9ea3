"""The prox against its definition: a float64 reference that sorts, and the optimality conditions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magr_gptq.reduction.prox import prox_linf, prox_squared_linf, threshold


def sorted_threshold(row: torch.Tensor, t: float, squared: bool) -> float:
    """The root of Σ max(aᵢ − θ, 0) = t (or t·θ), by trying every active set of the sorted row."""
    a = row.double().abs().sort(descending=True).values
    if not squared and a.sum() <= t:
        return 0.0
    for active in range(1, len(a) + 1):
        theta = float(a[:active].sum() / (active + t) if squared else (a[:active].sum() - t) / active)
        following = float(a[active]) if active < len(a) else 0.0
        if following <= theta:
            return theta
    raise AssertionError("no active set fits")


ROWS = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.floats(-100, 100, allow_subnormal=False, width=32), min_size=n, max_size=n)
)


@pytest.mark.parametrize("squared", [False, True])
@settings(max_examples=200, deadline=None)
@given(row=ROWS, t=st.floats(1e-3, 1e3))
def test_threshold_solves_its_equation(squared: bool, row: list[float], t: float) -> None:
    v = torch.tensor([row], dtype=torch.float64)
    theta = threshold(v.abs(), torch.tensor(t, dtype=torch.float64), squared=squared)
    assert theta.item() == pytest.approx(sorted_threshold(v[0], t, squared), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("squared", [False, True])
@settings(max_examples=100, deadline=None)
@given(row=ROWS, t=st.floats(1e-3, 1e3), start=st.floats(0, 200))
def test_any_start_ends_at_the_same_threshold(
    squared: bool, row: list[float], t: float, start: float
) -> None:
    a = torch.tensor([row], dtype=torch.float64).abs()
    weight = torch.tensor(t, dtype=torch.float64)
    cold = threshold(a, weight, squared=squared)
    warm = threshold(a, weight, squared=squared, start=torch.full_like(cold, start))
    torch.testing.assert_close(warm, cold, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("squared", [False, True])
@settings(max_examples=100, deadline=None)
@given(row=ROWS, t=st.floats(1e-3, 1e3), data=st.data())
def test_a_whole_metric_counts_like_repeated_entries(squared: bool, row: list[float], t: float, data) -> None:
    counts = data.draw(st.lists(st.integers(1, 5), min_size=len(row), max_size=len(row)))
    v, metric = torch.tensor([[row]], dtype=torch.float64), torch.tensor([counts], dtype=torch.float64)
    weight = torch.tensor(t, dtype=torch.float64)
    found = threshold(v.abs(), weight, squared=squared, metric=metric)
    repeated = v[0].repeat_interleave(torch.tensor(counts), dim=1)
    assert found.item() == pytest.approx(sorted_threshold(repeated[0], t, squared), rel=1e-9, abs=1e-9)


def test_inside_on_and_outside_the_ball() -> None:
    v = torch.tensor([[1.0, -2.0, 0.5]])
    assert prox_linf(v, 4.0).eq(0).all()  # ‖v‖₁ = 3.5 < t
    assert prox_linf(v, 3.5).abs().max() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(prox_linf(v, 1.0), torch.tensor([[1.0, -1.0, 0.5]]))
    torch.testing.assert_close(prox_squared_linf(v, 1.0), torch.tensor([[1.0, -1.0, 0.5]]))


@pytest.mark.parametrize("prox", [prox_linf, prox_squared_linf])
def test_no_penalty_changes_nothing(prox) -> None:
    v = torch.randn(5, 33, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(prox(v, 0.0), v)


@pytest.mark.parametrize("squared", [False, True])
def test_prox_is_the_minimiser(squared: bool) -> None:
    """No point of a cloud around the prox has a lower objective."""
    generator = torch.Generator().manual_seed(1)
    v, t = torch.randn(1, 16, generator=generator, dtype=torch.float64), 0.7
    found = (prox_squared_linf if squared else prox_linf)(v, t)

    def objective(w: torch.Tensor) -> torch.Tensor:
        largest = w.abs().amax(1)
        return (t / 2 * largest**2 if squared else t * largest) + 0.5 * (w - v).square().sum(1)

    cloud = found + 1e-3 * torch.randn(5000, 16, generator=generator, dtype=torch.float64)
    assert (objective(cloud) >= objective(found)).all()


def test_rows_do_not_see_each_other() -> None:
    v = torch.randn(7, 50, generator=torch.Generator().manual_seed(2))
    together = prox_squared_linf(v, 0.3)
    alone = torch.cat([prox_squared_linf(row[None], 0.3) for row in v])
    assert torch.equal(together, alone)


def test_equal_magnitudes_terminate() -> None:
    v = torch.full((2, 1000), 0.1)
    assert torch.isfinite(prox_linf(v, 0.5)).all()
    assert torch.isfinite(prox_squared_linf(v, 0.5)).all()
