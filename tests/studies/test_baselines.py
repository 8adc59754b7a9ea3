"""The baselines' mathematics: what the evaluation compares against must itself be right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eval.lib.baselines import (
    Penalty,
    accelerated,
    derived_penalty,
    gptq_round,
    grid_step,
    inverse_factor,
    objective,
    paper_magr,
    project_l1_ball,
    proximal_descent,
    proxy_loss,
    round_to_nearest,
    sorted_threshold,
)
from magr_gptq import MagRConfig, reduce

PENALTIES = [
    Penalty(0.3, squared=False),
    Penalty(0.3, squared=False, group_size=5),
    Penalty(0.8, squared=True),
    Penalty(0.8, squared=True, group_size=5),
    Penalty(torch.tensor([0.3, 0.9, 1.4, 0.6]), squared=True, group_size=5),
]


def layer(rows: int = 6, columns: int = 17, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A float64 weight and the Hessian of correlated inputs, λmax 3."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = (torch.randn(4 * columns, columns, generator=generator) @ mixing).double()
    hessian = inputs.T @ inputs
    return weight, 3 * hessian / torch.linalg.eigvalsh(hessian)[-1]


def bisected_threshold(magnitudes: Tensor, t: float, squared: bool) -> float:
    """The root of Σ max(aᵢ − θ, 0) − t (or − tθ), found by halving."""
    low, high = 0.0, float(magnitudes.max())
    for _ in range(200):
        middle = (low + high) / 2
        excess = float((magnitudes - middle).clamp_min(0).sum()) - (t * middle if squared else t)
        low, high = (middle, high) if excess > 0 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("t", [0.0, 0.01, 1.0, 7.0, 1000.0])
def test_sorted_threshold_solves_its_equation(squared: bool, t: float) -> None:
    magnitudes = layer()[0].abs()
    magnitudes[0] = magnitudes[0, 0]  # ties
    found = sorted_threshold(magnitudes, torch.tensor(t, dtype=torch.float64), squared)
    roots = [[bisected_threshold(row, t, squared)] for row in magnitudes]
    expected = torch.tensor(roots, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_projection_is_nearest_point_of_the_ball() -> None:
    v = layer()[0]
    radius = torch.tensor(2.0, dtype=torch.float64)
    projected = project_l1_ball(v, radius)
    assert (projected.abs().sum(-1) <= 2 + 1e-12).all()
    inside = project_l1_ball(torch.randn(500, 1, 17, dtype=torch.float64), radius)
    # obtuse angle: no point of the ball lies on v's side of the projection
    assert float(((v - projected) * (inside - projected)).sum(-1).max()) <= 1e-12


@pytest.mark.parametrize("penalty", PENALTIES)
def test_prox_beats_every_nearby_point(penalty: Penalty) -> None:
    v = layer()[0]
    identity = torch.eye(17, dtype=torch.float64)
    best = penalty.prox(v, 1.0)
    least = objective(best, v, identity, penalty)
    for size in (1e-4, 1e-2, 1.0):
        other = best + size * torch.randn(200, *v.shape, dtype=torch.float64)
        values = torch.stack([objective(rows, v, identity, penalty) for rows in other])
        assert (values >= least - 1e-12).all()


@pytest.mark.parametrize("penalty", PENALTIES)
def test_accelerated_reaches_a_fixed_point_with_no_duality_gap(penalty: Penalty) -> None:
    weight, hessian = layer()
    found = accelerated(weight, hessian, penalty, steps=5_000, tolerance=1e-12)
    moved = penalty.prox(found - (found - weight) @ hessian / 3, 1 / 3)
    torch.testing.assert_close(moved, found, rtol=0, atol=1e-7)
    value = objective(found, weight, hessian, penalty)
    bound = penalty.lower_bound(found, weight, hessian)
    torch.testing.assert_close(value, bound, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_plain_descent_agrees_with_accelerated(penalty: Penalty) -> None:
    weight, hessian = layer()
    plain = objective(proximal_descent(weight, hessian, penalty, 2_000), weight, hessian, penalty)
    fast = objective(accelerated(weight, hessian, penalty, 500), weight, hessian, penalty)
    torch.testing.assert_close(plain, fast, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_lower_bound_lies_below_the_minimum_from_anywhere(penalty: Penalty) -> None:
    weight, hessian = layer()
    least = objective(accelerated(weight, hessian, penalty, 500), weight, hessian, penalty)
    for steps in (0, 1, 5, 50):
        rows = proximal_descent(weight, hessian, penalty, steps) + 0.01
        assert (penalty.lower_bound(rows, weight, hessian) <= least + 1e-10).all()


@pytest.mark.parametrize("group_size", [-1, 5])
def test_paper_magr_converges_to_the_scaled_problem(group_size: int) -> None:
    weight, hessian = layer()
    hessian += 0.3 * torch.eye(17)  # λmax 3.3, and conditioned well enough for plain descent to end
    penalty = Penalty(0.01, squared=False, group_size=group_size)
    scaled = hessian / 3.3
    start = objective(weight, weight, scaled, penalty)
    least = objective(accelerated(weight, scaled, penalty, 500), weight, scaled, penalty)
    gaps = []
    for steps in (1, 10, 500):
        rows = paper_magr(weight, hessian, 0.01, steps, group_size)
        gaps.append(float(((objective(rows, weight, scaled, penalty) - least) / (start - least)).max()))
    assert 1 > gaps[0] > gaps[1] > 1e-3
    assert abs(gaps[2]) < 1e-9
    few, of_a_multiple = (paper_magr(weight, h, 0.01, 10, group_size) for h in (hessian, 40 * hessian))
    torch.testing.assert_close(of_a_multiple, few)


def test_inverse_factor_is_the_upper_cholesky_factor_of_the_damped_inverse() -> None:
    _, hessian = layer()
    hessian[4] = hessian[:, 4] = 0  # an input that never fired
    factor = inverse_factor(hessian)
    assert torch.equal(factor, factor.triu())
    filled = hessian.clone()
    filled[4, 4] = 1
    damped = filled + 0.01 * filled.diagonal().mean() * torch.eye(17)
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(17, dtype=torch.float64))


def test_derived_penalty_equals_gptqs_expected_loss() -> None:
    weight, hessian = layer()
    factor = inverse_factor(hessian)
    error = factor.diagonal().pow(-2)
    for bits, group_size in ((2, -1), (3, 5)):
        groups = weight.split(17 if group_size == -1 else group_size, dim=1)
        columns = error.split([group.shape[1] for group in groups])
        expected = sum(
            (2 * group.abs().amax(-1) / (2**bits - 1)).square() / 12 * share.sum()
            for group, share in zip(groups, columns, strict=True)
        )
        # the penalty stands beside ½ of the squared error
        found = derived_penalty(factor, bits, group_size, strength=0.5).of(weight)
        torch.testing.assert_close(found, 0.5 * expected / 2)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [-1, 64])
def test_gptq_beats_rounding_in_proxy_loss(bits: int, group_size: int) -> None:
    weight, hessian = layer(rows=16, columns=320)
    rounded = round_to_nearest(weight, bits, group_size)
    quantized = gptq_round(weight, inverse_factor(hessian), bits, group_size)
    assert proxy_loss(quantized, weight, hessian) < 0.7 * proxy_loss(rounded, weight, hessian)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("group_size", [-1, 40])
def test_weight_on_its_grid_is_kept(method: str, group_size: int) -> None:
    _, hessian = layer(columns=200)
    codes = torch.randint(-4, 4, (6, 200), generator=torch.Generator().manual_seed(0))
    codes[:, ::40] = -4  # every group reaches the grid's end, where max|w| is 2ᵇ⁻¹·δ
    weight = codes * torch.linspace(0.1, 2, 6, dtype=torch.float64).unsqueeze(-1)
    beta = 7 / 8  # of 3 bits: δ = β·2·max|w|/7 = max|w|/4
    factor = inverse_factor(hessian)
    kept = (
        round_to_nearest(weight, 3, group_size, beta)
        if method == "rtn"
        else gptq_round(weight, factor, 3, group_size, beta)
    )
    torch.testing.assert_close(kept, weight, rtol=1e-12, atol=1e-12)


def test_gptq_without_correlation_is_rounding() -> None:
    weight, _ = layer(columns=300)
    factor = inverse_factor(torch.eye(300, dtype=torch.float64))
    torch.testing.assert_close(gptq_round(weight, factor, 3, 128, 0.9), round_to_nearest(weight, 3, 128, 0.9))


def test_gptq_follows_the_unblocked_recursion() -> None:
    weight, hessian = layer(rows=3, columns=300)
    factor = inverse_factor(hessian)
    step = grid_step(weight, 2, 0.8)[:, 0]
    work, expected = weight.clone(), torch.empty_like(weight)
    for i in range(300):
        expected[:, i] = (work[:, i] / step).round().clamp(-2, 1) * step
        error = (work[:, i] - expected[:, i]) / factor[i, i]
        work[:, i:] -= error.unsqueeze(1) * factor[i, i:]
    torch.testing.assert_close(gptq_round(weight, factor, 2, -1, 0.8), expected)


def test_grid_has_codes_as_the_toolkits() -> None:
    weight = torch.tensor([[-1.5, 0.7, 1.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(grid_step(weight, 2), torch.tensor([[1.0], [2 / 3]]))
    torch.testing.assert_close(round_to_nearest(weight, 2), torch.tensor([[-2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("group_size", [-1, 5])
def test_paper_preset_equals_the_papers_algorithm(group_size: int) -> None:
    weight, hessian = layer()
    config = MagRConfig(preset="paper", alpha=0.02)
    found = reduce(weight, hessian, bits=3, group_size=group_size, config=config).weight
    torch.testing.assert_close(
        found.double(), paper_magr(weight, hessian, 0.02, 150, group_size), rtol=0, atol=1e-5
    )
