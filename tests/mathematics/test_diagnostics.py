"""The ranks and losses that `inspect` predicts: against float64 references, and against GPTQ itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import hessian_of, weight_of

from eval.lib.baselines import gptq_round, inverse_factor, proxy_loss
from magr_gptq import MagRConfig, reduce
from magr_gptq.app.inspecting.forecast import (
    forecast,
    forecast_layers,
    fraction_rank,
    predicted_loss,
    rounding_error,
    spread,
)
from magr_gptq.reduction.penalty import conditional_variances, derived_penalty


def inputs_of(tokens: int, columns: int, values: torch.Tensor) -> torch.Tensor:
    """X [tokens, columns] of these singular values, float64."""
    generator = torch.Generator().manual_seed(tokens + columns)
    sides = (torch.randn(n, len(values), generator=generator, dtype=torch.float64) for n in (tokens, columns))
    left, right = (torch.linalg.qr(side).Q for side in sides)
    return (left * values) @ right.T


@pytest.mark.parametrize("columns", [1, 7, 64])
def test_orthonormal_inputs_have_full_rank_and_a_single_direction_has_one(columns: int) -> None:
    orthonormal = inputs_of(80, columns, torch.ones(columns, dtype=torch.float64))
    assert fraction_rank((orthonormal.T @ orthonormal).float()) == 1
    direction = torch.randn(columns, generator=torch.Generator().manual_seed(0))
    assert fraction_rank(torch.outer(direction, direction)) == pytest.approx(1 / columns)


def test_fewer_tokens_than_columns_bound_the_rank() -> None:
    inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    assert fraction_rank(inputs.T @ inputs) == 0.25


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_fraction_rank_counts_singular_values_above_one_per_cent(scale: float) -> None:
    values = torch.tensor([3.0, 1.0, 0.5, 0.0303, 0.0297, 0.001], dtype=torch.float64)
    inputs = inputs_of(20, 6, values)
    singular = torch.linalg.svdvals(inputs)
    assert float((singular > 0.01 * singular[0]).double().mean()) == pytest.approx(4 / 6)
    assert fraction_rank((scale * inputs.T @ inputs).float()) == pytest.approx(4 / 6)


def test_no_input_has_no_rank() -> None:
    assert fraction_rank(torch.zeros(5, 5)) == 0


def expected_rounding(weight, variances, bits: int, group_size: int, beta: float) -> torch.Tensor:
    """`rounding_error` weight by weight, in float64."""
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    total = torch.zeros(rows, dtype=torch.float64)
    for row in range(rows):
        for start in range(0, columns, size):
            group = weight[row, start : start + size].double().abs()
            step = beta * 2 * group.max() / (2**bits - 1)
            for w, variance in zip(group, variances[start : start + size].double(), strict=True):
                # the outermost level lies half a step inside of beta times the largest magnitude
                clipped = w - (2**bits / 2 - 1) * step
                error = clipped**2 if w > beta * group.max() else step**2 / 12
                total[row] += error * variance
    return total


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("group_size", [-1, 5, 8, 64])
@pytest.mark.parametrize("beta", [1.0, 0.8])
def test_rounding_error_is_its_formula(bits: int, group_size: int, beta: float) -> None:
    weight, variances = weight_of(3, 24), conditional_variances(hessian_of(24))
    found = rounding_error(weight, variances, bits=bits, group_size=group_size, beta=beta)
    expected = expected_rounding(weight, variances, bits, group_size, beta)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("group_size", [-1, 16])
def test_rounding_error_is_what_the_derived_penalty_stands_for(group_size: int) -> None:
    weight, variances = weight_of(8, 40), conditional_variances(hessian_of(40))
    found = rounding_error(weight, variances, bits=3, group_size=group_size)
    penalty = derived_penalty(variances, 3, group_size, strength=2.0).value(weight)
    torch.testing.assert_close(found, penalty)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 7, 16]),
    exponents=st.tuples(st.integers(-12, 12), st.integers(-12, 12)),
)
def test_scales_of_hessian_and_weights_do_not_matter(
    seed: int, bits: int, group_size: int, exponents
) -> None:
    weight, hessian = weight_of(6, 40, seed), hessian_of(40, seed)
    smaller = 0.9 * weight
    options = {"bits": bits, "group_size": group_size, "beta": 0.85}
    plain = predicted_loss(smaller, weight, hessian, **options)
    of_w, of_h = (2.0**exponent for exponent in exponents)
    scaled = predicted_loss(of_w * smaller, of_w * weight, of_h * hessian, **options)
    assert scaled == pytest.approx(plain, rel=1e-5)


def test_predicted_loss_is_its_formula_in_float64() -> None:
    weight, hessian = weight_of(16, 48).double(), hessian_of(48, dtype=torch.float64)
    smaller = weight.clamp(-0.05, 0.05)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    variances = torch.linalg.cholesky(damped.inverse(), upper=True).diagonal() ** -2
    change = smaller - weight
    expected = (change @ hessian @ change.T).trace() + expected_rounding(smaller, variances, 3, 16, 0.9).sum()
    expected = float(expected / (weight @ hessian @ weight.T).trace())
    options = {"bits": 3, "group_size": 16, "beta": 0.9}
    assert predicted_loss(smaller, weight, hessian, **options) == pytest.approx(expected, rel=1e-9)
    in_float32 = predicted_loss(smaller.float(), weight.float(), hessian.float(), **options)
    assert in_float32 == pytest.approx(expected, rel=1e-4)


def test_without_magr_the_loss_follows_the_step_squared() -> None:
    weight, hessian = weight_of(16, 48), hessian_of(48)
    losses = {bits: predicted_loss(weight, weight, hessian, bits=bits) for bits in (2, 3, 4)}
    assert losses[2] / losses[3] == pytest.approx((7 / 3) ** 2)
    assert losses[3] / losses[4] == pytest.approx((15 / 7) ** 2)


def test_a_layer_without_output_is_refused() -> None:
    with pytest.raises(ValueError, match="a layer without output"):
        predicted_loss(torch.zeros(2, 8), torch.zeros(2, 8), hessian_of(8), bits=4)


def test_forecast_is_reduction_and_both_losses() -> None:
    weight, hessian = weight_of(32, 64), hessian_of(64)
    config = MagRConfig(beta=0.9)
    found = forecast(weight.half(), hessian, bits=3, group_size=16, config=config)
    weight = weight.half().float()
    reduced = reduce(weight, hessian, bits=3, group_size=16, config=config)
    assert torch.equal(found.largest_before, weight.abs().amax(1))
    assert torch.equal(found.largest_after, reduced.weight.abs().amax(1))
    assert found.loss_before == predicted_loss(weight, weight, hessian, bits=3, group_size=16)
    assert found.loss_after == predicted_loss(
        reduced.weight, weight, hessian, bits=3, group_size=16, beta=0.9
    )
    assert (found.bits, found.beta) == (3, 0.9)


def test_a_penalty_that_is_far_too_strong_is_seen_not_to_help() -> None:
    weight, hessian = weight_of(32, 64), hessian_of(64)
    assert forecast(weight, hessian, bits=4).helps
    assert not forecast(weight, hessian, bits=4, config=MagRConfig(strength=1e3)).helps
    # nothing to gain or to lose: no help either
    assert not forecast(weight, hessian, bits=4, config=MagRConfig(strength=1e-30, beta=1)).helps


def test_layers_without_output_are_left_out_with_a_reason() -> None:
    weights = {"a": weight_of(4, 16), "b": torch.zeros(4, 16)}
    full, empty = forecast_layers(weights, hessian_of(16), 99, (4, 2))
    assert [found.bits for found in full.forecasts] == [4, 2]
    assert full.skipped is None
    assert (empty.name, empty.shape, empty.tokens, empty.forecasts) == ("b", (4, 16), 99, ())
    assert empty.skipped == "its output is zero"
    assert full.fraction_rank == empty.fraction_rank == fraction_rank(hessian_of(16))
    (unreached,) = forecast_layers({"a": weight_of(4, 16)}, torch.zeros(16, 16), 5, (4,))
    assert unreached.skipped == "its output is zero"


def test_spread_of_known_values() -> None:
    found = spread([0.4, 0.0, 0.1, 0.3, 0.2])
    expected = {"min": 0.0, "q25": 0.1, "median": 0.2, "q75": 0.3, "max": 0.4, "mean": 0.2}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [-1, 64])
@pytest.mark.parametrize("decay", [0.5, 1.5])
def test_prediction_is_what_gptq_ends_with(bits: int, group_size: int, decay: float) -> None:
    """Both sides of the forecast against GPTQ itself, on normal weights.

    GPTQ's loss under the damped Hessian is exactly the sum of its squared errors over Uᵢᵢ², so all
    that may differ is how its errors are spread: 10 % for plain GPTQ with a scale a row; 20 % with groups,
    whose scales are taken from weights that carry errors already, and 35 % where a short step clips weights.
    The loss under H itself lacks the damping's share, up to a third of it where H falls off fast.
    """
    generator = torch.Generator().manual_seed(bits)
    weight, hessian = torch.randn(128, 192, generator=generator), hessian_of(192, decay=decay)
    found = forecast(weight, hessian, bits=bits, group_size=group_size)
    reduced = reduce(weight, hessian, bits=bits, group_size=group_size).weight
    factor = inverse_factor(hessian)
    damping = 0.01 * hessian.diagonal().mean()

    def check(predicted: float, rounded: torch.Tensor, given: torch.Tensor, slack: float) -> None:
        own = (rounded - given).square().sum() * damping / (weight @ hessian * weight).sum()
        measured = proxy_loss(rounded, weight, hessian)
        assert 1 / slack < predicted / (measured + float(own)) < slack
        assert 0.9 < predicted / measured < 1.6

    plain = gptq_round(weight, factor, bits, group_size)
    check(found.loss_before, plain, weight, 1.1 if group_size == -1 else 1.2)
    check(found.loss_after, gptq_round(reduced, factor, bits, group_size, found.beta), reduced, 1.35)
