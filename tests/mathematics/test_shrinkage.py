"""The shrinkage of a Hessian, against what stored tokens say in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magr_gptq.reduction.shrinkage import (
    effective_tokens,
    evenly_loud,
    moments,
    shrink,
    shrink_,
    shrinkage,
)

FLOATS = [torch.float32, torch.float64]


def tokens_of(count: int, columns: int, seed: int = 0, loudness: float = 0.5) -> Tensor:
    """Correlated tokens, some louder than others, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    mix *= torch.arange(1, columns + 1, dtype=torch.float64) ** -1.0
    tokens = torch.randn(count, columns, generator=generator, dtype=torch.float64) @ mix.T
    norms = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return tokens * (loudness * norms).exp()


def share_of(tokens: Tensor, factor: float = 1.0, dtype: torch.dtype = torch.float64) -> float:
    """ρ by the product's functions."""
    hessian = (factor * tokens.T @ tokens).to(dtype)
    return float(shrinkage(hessian, moments(tokens.to(dtype))))


def obvious_share(tokens: Tensor) -> float:
    """ρ as it is defined: one matrix a token, the variance of their mean, its distance from the target."""
    count, columns = tokens.shape
    each = tokens[:, :, None] * tokens[:, None, :]
    estimate = each.mean(0)
    variance = (each - estimate).square().sum() / (count - 1) / count
    target = estimate.diagonal().mean() * torch.eye(columns, dtype=tokens.dtype)
    return min(1.0, float(variance / (estimate - target).square().sum()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("count", "columns"), [(2, 5), (7, 20), (40, 8), (500, 16)])
def test_it_is_the_share_that_one_matrix_a_token_gives(count: int, columns: int, dtype: torch.dtype) -> None:
    tokens = tokens_of(count, columns)
    assert share_of(tokens, dtype=dtype) == pytest.approx(obvious_share(tokens), rel=1e-5)


def test_most_of_these_shares_are_neither_zero_nor_one() -> None:
    shares = [obvious_share(tokens_of(count, 20, loudness=0.1)) for count in (7, 20, 100, 500)]
    assert all(0.001 < share < 0.9 for share in shares)


def test_the_variance_is_on_average_that_of_repeated_samples() -> None:
    columns, count, trials = 6, 12, 1000
    mix = tokens_of(columns, columns, seed=3)
    truth = mix.T @ mix
    generator = torch.Generator().manual_seed(4)
    samples = torch.randn(trials, count, columns, generator=generator, dtype=torch.float64) @ mix
    estimates = samples.mT @ samples / count
    happened = (estimates - truth).square().sum((-2, -1)).mean()
    sums = torch.stack([moments(sample) for sample in samples])
    targets = estimates.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(columns)
    distances = (estimates - targets).square().sum((-2, -1))
    shares = shrinkage(estimates, sums)
    inside = shares < 1
    assert inside.double().mean() > 0.99
    assert float((shares * distances).mean()) == pytest.approx(float(happened), rel=0.1)


def test_it_brings_the_hessian_about_as_near_to_that_of_all_tokens_as_the_best_fixed_share() -> None:
    columns, count = 16, 24
    mix = torch.linspace(1, 3, columns, dtype=torch.float64).diag()
    truth = mix.T @ mix
    generator = torch.Generator().manual_seed(6)
    fixed = torch.linspace(0, 1, 51, dtype=torch.float64)
    errors, own = torch.zeros(51, dtype=torch.float64), 0.0
    for _ in range(200):
        sample = torch.randn(count, columns, generator=generator, dtype=torch.float64) @ mix
        hessian = sample.T @ sample / count
        errors += torch.stack([(shrink(hessian, rho) - truth).square().sum() for rho in fixed])
        own += float((shrink(hessian, shrinkage(hessian, moments(sample))) - truth).square().sum())
    assert 0.05 < float(fixed[errors.argmin()]) < 0.9
    assert own < 1.1 * float(errors.min()) < 0.5 * float(errors[0])


@given(exponent=st.floats(-12, 12), unit=st.floats(-3, 3), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_neither_the_factor_of_the_hessian_nor_the_unit_of_the_tokens_matters(
    exponent: float, unit: float, seed: int
) -> None:
    tokens = tokens_of(30, 12, seed)
    rescaled = shrinkage(10**exponent * tokens.T @ tokens, moments(10**unit * tokens))
    assert float(rescaled) == pytest.approx(share_of(tokens), rel=1e-9)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_a_float32_hessian_of_any_size_has_the_same_share(factor: float) -> None:
    tokens = tokens_of(30, 12)
    assert share_of(tokens, factor, torch.float32) == pytest.approx(share_of(tokens), rel=1e-4)
    hessian = (factor * tokens.T @ tokens).float()
    rho = torch.tensor(0.25)
    expected = 0.75 * hessian.double() + 0.25 * hessian.double().diagonal().mean() * torch.eye(12)
    found = shrink(hessian, rho).double()
    torch.testing.assert_close(found / factor, expected / factor, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 999), count=st.integers(2, 60))
@settings(max_examples=50, deadline=None)
def test_it_turns_with_the_tokens(seed: int, count: int) -> None:
    tokens = tokens_of(count, 10, seed)
    turn, _ = torch.linalg.qr(tokens_of(10, 10, seed + 1))
    rho = share_of(tokens)
    assert share_of(tokens @ turn) == pytest.approx(rho, rel=1e-9)
    hessian = tokens.T @ tokens
    share = torch.tensor(rho)
    torch.testing.assert_close(shrink(turn.T @ hessian @ turn, share), turn.T @ shrink(hessian, share) @ turn)


def test_the_order_of_tokens_and_columns_does_not_matter() -> None:
    tokens = tokens_of(30, 12)
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.randperm(30, generator=generator), torch.randperm(12, generator=generator)
    assert share_of(tokens[rows][:, columns]) == pytest.approx(share_of(tokens), rel=1e-12)


def test_moments_of_parts_add_up() -> None:
    tokens = tokens_of(30, 12)
    torch.testing.assert_close(moments(tokens[:7]) + moments(tokens[7:].view(1, 23, 12)), moments(tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_loud_tokens_in_half_precision_are_those_of_their_values(dtype: torch.dtype) -> None:
    tokens = torch.full((3, 64), 3000.0, dtype=dtype)
    assert torch.equal(moments(tokens), moments(tokens.double()))


def test_all_tokens_twice_count_as_twice_as_many() -> None:
    tokens = tokens_of(30, 12, loudness=0.1)
    assert share_of(torch.cat([tokens, tokens])) == pytest.approx(share_of(tokens) * 29 / 59, rel=1e-9)


def test_tokens_that_are_zero_count_as_loudness_that_differs_and_no_more() -> None:
    tokens = tokens_of(30, 12, loudness=0.1)
    padded = torch.cat([tokens, torch.zeros(300, 12, dtype=torch.float64)])
    concentration = (tokens.T @ tokens).square().sum() / tokens.square().sum() ** 2
    assert share_of(tokens) < share_of(padded) < share_of(tokens) / (1 - float(concentration))
    assert float(effective_tokens(moments(padded))) == pytest.approx(float(effective_tokens(moments(tokens))))


def test_one_token_says_nothing_about_others() -> None:
    token = tokens_of(1, 12)
    assert share_of(token) == 1
    shrunk = shrink(token.T @ token, shrinkage(token.T @ token, moments(token)))
    torch.testing.assert_close(shrunk, token.square().mean() * torch.eye(12, dtype=torch.float64))


def test_one_token_among_many_that_is_the_whole_hessian_counts_as_one() -> None:
    tokens = tokens_of(400, 12, loudness=0)
    assert share_of(tokens) < 0.05
    tokens[3] *= 1e4
    assert share_of(tokens) == pytest.approx(1, abs=1e-6)
    assert float(effective_tokens(moments(tokens))) == pytest.approx(1, abs=1e-4)


def test_more_tokens_are_shrunk_less_and_endless_ones_not_at_all() -> None:
    shares = [share_of(tokens_of(count, 12, loudness=0.1)) for count in (20, 200, 2_000, 200_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 1e-4


def test_as_many_effective_tokens_as_tokens_where_all_have_one_norm() -> None:
    tokens = torch.nn.functional.normalize(tokens_of(30, 12), dim=1)
    assert float(effective_tokens(moments(tokens))) == pytest.approx(30)
    assert share_of(tokens) == pytest.approx(float(shrinkage(tokens.T @ tokens, evenly_loud(30))), rel=1e-9)


@given(seed=st.integers(0, 999), count=st.integers(2, 60), loudness=st.floats(0, 2))
@settings(max_examples=50, deadline=None)
def test_the_number_of_tokens_alone_gives_a_lower_bound(seed: int, count: int, loudness: float) -> None:
    tokens = tokens_of(count, 10, seed, loudness)
    bound = float(shrinkage(tokens.T @ tokens, evenly_loud(count)))
    assert bound <= share_of(tokens) * (1 + 1e-9)


def test_inputs_that_are_all_zero_stay_zero() -> None:
    nothing = torch.zeros(5, 4)
    rho = shrinkage(nothing.T @ nothing, moments(nothing))
    assert float(rho) == 1
    assert torch.equal(shrink(nothing.T @ nothing, rho), torch.zeros(4, 4))
    assert float(effective_tokens(moments(nothing))) == 0


def test_a_layer_that_no_token_reached_stays_zero() -> None:
    nothing = torch.zeros(4, 4)
    rho = shrinkage(nothing, moments(torch.zeros(0, 4)))
    assert torch.equal(shrink(nothing, rho), nothing)


def test_a_single_column_stays_as_it_is() -> None:
    tokens = tokens_of(9, 1)
    hessian = tokens.T @ tokens
    torch.testing.assert_close(shrink(hessian, shrinkage(hessian, moments(tokens))), hessian)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_what_is_shrunk_keeps_its_trace_and_dtype(rho: float, dtype: torch.dtype) -> None:
    tokens = tokens_of(7, 12)
    hessian = (tokens.T @ tokens).to(dtype)
    shrunk = shrink(hessian, torch.tensor(rho, dtype=torch.float64))
    assert shrunk.dtype == dtype
    target = hessian.double().diagonal().mean() * torch.eye(12)
    expected = (1 - rho) * hessian.double() + rho * target
    torch.testing.assert_close(shrunk.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shrunk.trace(), hessian.trace())


def test_it_is_definite_from_fewer_tokens_than_columns() -> None:
    tokens = tokens_of(3, 12)
    hessian = tokens.T @ tokens
    assert torch.linalg.eigvalsh(shrink(hessian, shrinkage(hessian, moments(tokens))))[0] > 0


def test_in_place_is_the_same_in_the_given_memory() -> None:
    tokens = tokens_of(7, 12)
    hessian, rho = tokens.T @ tokens, torch.tensor(0.3)
    expected, address = shrink(hessian, rho), hessian.data_ptr()
    assert not torch.equal(hessian, expected)
    assert shrink_(hessian, rho).data_ptr() == address
    assert torch.equal(hessian, expected)


def test_a_batch_is_its_layers_one_by_one() -> None:
    layers = [tokens_of(count, 12, seed=count) for count in (1, 5, 40)]
    hessians = torch.stack([x.T @ x for x in layers])
    sums = torch.stack([moments(x) for x in layers])
    rho = shrinkage(hessians, sums)
    for i, x in enumerate(layers):
        assert float(rho[i]) == pytest.approx(share_of(x), rel=1e-12)
        torch.testing.assert_close(shrink(hessians, rho)[i], shrink(hessians[i], rho[i]))


def test_a_hessian_of_several_chunks_of_rows_is_whole() -> None:
    tokens = tokens_of(50, 600)
    assert share_of(tokens) == pytest.approx(obvious_share(tokens), rel=1e-9)


@pytest.mark.parametrize(
    "wrong", [(4, 1.0, 0.1), (4, 1.0, 2.0), (-1, 1.0, 1.0), (4, float("nan"), 1.0), (4, 1.0, float("inf"))]
)
def test_moments_of_no_tokens_are_refused_with_their_values(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"n=.*Σ‖x‖⁴=.* belong to no tokens; sum what `moments` gives"):
        shrinkage(torch.eye(4), torch.tensor(wrong, dtype=torch.float64))
