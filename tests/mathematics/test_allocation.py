"""Which options of a size are cheapest, by brute force; what a width costs, by float64 and by measuring."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import hessian_of, weight_of
from torch import Tensor

from eval.lib.baselines import gptq_grid, gptq_round, inverse_factor
from magr_gptq import MagRConfig
from magr_gptq.allocation.allocate import Item, allocate
from magr_gptq.allocation.columns import Unrounded, round_columns
from magr_gptq.allocation.fisher import random_direction
from magr_gptq.allocation.sample import SAMPLED_ROWS, Shared, in_place_of, samples
from magr_gptq.allocation.worth import LOUDEST, Width, Worth, limited_mean
from magr_gptq.reduction.factorization import Factorization
from magr_gptq.reduction.hessian import ScaledHessian
from magr_gptq.reduction.penalty import conditional_variances


def totals(items: list[Item], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    """Size and cost."""
    pairs = list(zip(items, chosen, strict=True))
    return sum(int(i.sizes[o]) for i, o in pairs), sum(float(i.costs[o]) for i, o in pairs)


def random_items(draw: random.Random, most: int = 6) -> list[Item]:
    """A few items of a few options, some of equal size or equal cost."""
    items = []
    for _ in range(draw.randint(1, most)):
        options = draw.randint(1, 4)
        sizes = [draw.randint(0, 20) for _ in range(options)]
        items.append(Item.of(sizes, [draw.choice((draw.random(), draw.randint(0, 3))) for _ in sizes]))
    return items


@pytest.mark.parametrize("seed", range(100))
def test_no_other_choice_within_the_limit_is_cheaper(seed: int) -> None:
    draw = random.Random(seed)
    items = random_items(draw)
    limit = sum(int(item.sizes.min()) for item in items) + draw.randint(0, 30)
    size, cost = totals(items, allocate(items, limit))
    every = (totals(items, choice) for choice in itertools.product(*(range(len(i.sizes)) for i in items)))
    assert size <= limit
    assert cost == pytest.approx(min(c for s, c in every if s <= limit), abs=1e-9)


def test_of_equal_costs_the_smaller_is_taken() -> None:
    assert allocate([Item.of([3, 2, 4], [1.0, 1.0, 1.0])], 10) == [1]


def test_a_hundred_layers_fill_the_size_to_a_thousandth_and_beat_every_uniform_width() -> None:
    draw = random.Random(1)
    layers = [(draw.choice((4096, 11008)) * 4096, draw.lognormvariate(0, 1)) for _ in range(128)]
    items = [
        Item.of([n * b // 8 for b in (2, 3, 4, 8)], [w * 4.0**-b for b in (2, 3, 4, 8)]) for n, w in layers
    ]
    limit = sum(int(item.sizes[1]) for item in items)
    size, cost = totals(items, allocate(items, limit))
    assert 0.999 * limit < size <= limit
    assert cost < 0.8 * totals(items, [1] * len(items))[1]


def test_items_that_take_one_option_are_summed() -> None:
    both = Item.together([Item.of([1, 5], [4.0, 1.0]), Item.of([2, 6], [3.0, 2.0])])
    assert both.sizes.tolist() == [3, 11]
    assert both.costs.tolist() == [7.0, 3.0]


def test_a_limit_below_all_is_named() -> None:
    with pytest.raises(ValueError, match="add up to 7, and the limit is 6"):
        allocate([Item.of([3, 4], [1.0, 0.0]), Item.of([4], [1.0])], 6)


def test_costs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        allocate([Item.of([1, 2], [float("nan"), 0.0])], 6)


WIDTHS = [Width(bits, group) for bits in (2, 3, 4, 8) for group in (-1, 32)]


@pytest.mark.parametrize("group_size", [-1, 32, 96])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_columns_are_rounded_as_the_reference_rounds_them(bits: int, group_size: int) -> None:
    weight, shared = weight_of(24, 200), Shared(hessian_of(200))
    factors = torch.tensor([1.0, 0.85, -0.7]).expand(24, -1)
    widths = torch.cat([torch.full((24, 1), float(bits)), torch.full((24, 1), 4.0)])
    rows = Unrounded(torch.cat([weight, weight.flip(0)]), widths, torch.cat([factors, factors]), group_size)
    others = Unrounded(weight, widths[24:], factors, 40)
    _, found = round_columns([others, rows], shared.factor)
    expected, step = gptq_grid(weight, inverse_factor(shared.hessian), bits, group_size, factors)
    torch.testing.assert_close(found.weight[:24], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.scale[:24], step, rtol=1e-3, atol=1e-5)
    assert found.group_of.tolist() == [i // (200 if group_size == -1 else group_size) for i in range(200)]


def test_what_layers_share_is_that_of_a_reduction_and_of_gptq() -> None:
    hessian = 1000 * hessian_of(64)
    shared = Shared(hessian)
    torch.testing.assert_close(shared.variances, conditional_variances(hessian), rtol=1e-3, atol=0.0)
    expected = inverse_factor(hessian.double())
    torch.testing.assert_close(shared.factor.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
    scaled = Factorization.of(ScaledHessian(hessian))
    torch.testing.assert_close(shared.factorization(None).variances, scaled.variances, rtol=1e-3, atol=0.0)


TOKENS = 256


def tokens(columns: int, outputs: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Inputs [tokens, in], a few of them loud, and gradients of each layer, small where inputs are loud."""
    generator = torch.Generator().manual_seed(1)
    loud = torch.linspace(-1, 2, TOKENS)[:, None].exp()
    inputs = loud * torch.randn(TOKENS, columns, generator=generator)
    return inputs, [torch.randn(TOKENS, rows, generator=generator) / loud for rows in outputs]


def expected_divergences(
    weights: list[Tensor],
    widths: list[Width],
    config: MagRConfig | None,
    rows: int = SAMPLED_ROWS,
) -> Tensor:
    """Of layers with one input, [layers, widths]; the tokens come in two batches."""
    inputs, gradients = tokens(weights[0].shape[1], [len(weight) for weight in weights])
    shared = Shared(hessian_of(weights[0].shape[1]) / TOKENS)
    found = []
    for sample, gradient in zip(samples(weights, shared, widths, config, rows), gradients, strict=True):
        worth = Worth(sample)
        for part in (slice(100), slice(100, None)):
            worth.add(worth.moved(inputs[None, part]), gradient[None, part])
        found.append(worth.divergences(TOKENS))
    return torch.stack(found)


def limited(products: Tensor) -> float:
    """The mean over tokens in which none counts more than so many means, by bisection."""
    low, high = 0.0, float(products.mean())
    for _ in range(60):
        mean = (low + high) / 2
        found = sum(c / (1 + c / (LOUDEST * mean)) for c in products.tolist()) / len(products)
        low, high = (mean, high) if found > mean else (low, mean)
    return mean


def test_with_all_rows_the_cost_is_half_of_every_tokens_error_times_gradient_the_loudest_held_down() -> None:
    weight, shared = weight_of(24, 64), Shared(hessian_of(64) / TOKENS)
    inputs, (gradient,) = tokens(64, [24])
    (found,) = expected_divergences([weight], WIDTHS, None)
    for width, cost in zip(WIDTHS, found, strict=True):
        change = gptq_round(weight, shared.factor, width.bits, width.group_size) - weight
        each = (inputs.double() @ change.double().T).square() * gradient.double().square()
        assert float(cost) == pytest.approx(0.5 * limited(each.sum(1)), rel=0.1)


@given(st.integers(100, 300), st.floats(1.0, 1e9), st.floats(1e-12, 1e12))
def test_a_token_counts_no_more_than_so_many_means(count: int, loud: float, unit: float) -> None:
    products = torch.ones(count, 2, dtype=torch.float64)
    products[0] = loud
    found = limited_mean(products)
    assert float(found[0]) == pytest.approx(limited(products[:, 0]), rel=1e-3)
    # others count what they are, and the loud one at most as many as the limit says
    assert 0.9 < float(found[0]) < 1 + LOUDEST * float(found[0]) / count
    assert torch.allclose(limited_mean(unit * products), unit * found)


def test_a_sample_of_rows_speaks_for_all() -> None:
    every = expected_divergences([weight_of(256, 64)], WIDTHS, MagRConfig(), rows=256)
    some = expected_divergences([weight_of(256, 64)], WIDTHS, MagRConfig(), rows=64)
    torch.testing.assert_close(some, every, rtol=0.15, atol=0.0)


def test_rows_whose_error_is_not_what_is_foreseen_do_not_speak_for_others() -> None:
    weight = weight_of(256, 64)
    # one weight makes the step of its row so large that all others are rounded to nothing
    weight[::32, 5] = 50 * weight.abs().max()
    every = expected_divergences([weight], WIDTHS, MagRConfig(), rows=256)
    some = expected_divergences([weight], WIDTHS, MagRConfig(), rows=64)
    torch.testing.assert_close(some, every, rtol=0.15, atol=0.0)


def test_layers_with_one_input_are_rounded_together_as_each_alone() -> None:
    """Also widths: each alone is rounded and swept on grids of its own bits."""
    shared = Shared(hessian_of(64) / TOKENS)
    weights = [weight_of(rows, 64, rows) for rows in (24, 80)]
    off = []
    for weight, together in zip(weights, samples(weights, shared, WIDTHS, MagRConfig()), strict=True):
        for width, change in zip(WIDTHS, together.changes, strict=True):
            (alone,) = samples([weight], shared, [width], MagRConfig())
            assert alone.rows.equal(together.rows)
            off.append(float((alone.changes[0] - change).norm() / change.norm()))
    # products of more rows are rounded otherwise: a code near a tie may fall to the other side, and GPTQ
    # carries that through its row
    assert sum(one > 1e-3 for one in off) <= 2


@pytest.mark.parametrize("config", [None, MagRConfig()], ids=["gptq", "magr"])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_a_cost_beyond_4_bits_is_foreseen(config: MagRConfig | None, group_size: int) -> None:
    """By the square of the step, as it is measured within a quarter; MagR has more to give at 4 bits."""
    for bits in (3, 4):
        assert in_place_of(Width(bits, group_size)) == (Width(bits, group_size), 1.0)
    wide = Width(8, group_size)
    narrow, times = in_place_of(wide)
    found = expected_divergences([weight_of(64, 96)], [narrow, wide], config)[0]
    assert float(found[0] * times) == pytest.approx(float(found[1]), rel=0.25 if config is None else 0.5)


def test_a_sample_is_reduced_in_two_iterations_at_most() -> None:
    def changes(iterations: int | None) -> Tensor:
        shared = Shared(hessian_of(64))
        (found,) = samples([weight_of(24, 64)], shared, [Width(2)], MagRConfig(iterations=iterations))
        return found.changes

    assert changes(None).equal(changes(2))
    assert not changes(1).equal(changes(2))


def test_more_bits_and_smaller_groups_cost_less() -> None:
    found = expected_divergences([weight_of(32, 64)], WIDTHS, MagRConfig()).view(4, 2)
    assert bool((found[1:] < found[:-1]).all())
    assert bool((found[:, 1] < found[:, 0]).all())


def test_a_layer_that_no_gradient_reaches_costs_nothing() -> None:
    (sample,) = samples([weight_of(8, 16)], Shared(hessian_of(16)), WIDTHS, MagRConfig())
    worth = Worth(sample)
    worth.add(worth.moved(torch.ones(3, 16)), torch.zeros(3, 8))
    assert worth.divergences(3).tolist() == [0.0] * len(WIDTHS)


def test_a_gradient_that_is_not_finite_shows_also_outside_the_sample() -> None:
    (sample,) = samples([weight_of(256, 16)], Shared(hessian_of(16)), WIDTHS, None)
    gradient = torch.ones(3, 256)
    gradient[0, 1] = torch.nan
    assert 1 not in sample.rows
    worth = Worth(sample)
    worth.add(worth.moved(torch.ones(3, 16)), gradient)
    assert bool(worth.divergences(3).isnan().all())


def test_directions_have_the_predictions_fisher_information() -> None:
    logits = torch.tensor([3.0, 0.0, -1.0, 1.0])
    p, draws = logits.double().softmax(-1), 100_000
    found = random_direction(logits.repeat(draws, 1), torch.Generator().manual_seed(0)).double()
    # p − y adds up to nothing for every label y
    assert float(found.sum(-1).abs().max()) < 1e-6
    fisher = p.diag() - p.outer(p)
    products = found[:, :, None] * found[:, None, :]
    # five standard deviations of a mean of so many draws, and of float32
    for average, value, spread in (
        (found.mean(0), torch.zeros(4), found.std(0)), (products.mean(0), fisher, products.std(0)),
    ):  # fmt: skip
        assert bool(((average - value).abs() <= 5 * spread / draws**0.5 + 1e-6).all())


def test_directions_are_as_long_where_the_prediction_is_sure() -> None:
    logits = torch.tensor([5.0, 0.0, 0.0, 0.0]).repeat(10_000, 1)
    found = random_direction(logits, torch.Generator().manual_seed(0)).square().sum(-1)
    p = logits[0].softmax(-1)
    assert float(found.mean()) == pytest.approx(float(1 - p.square().sum()), rel=0.05)
    # for p − y with drawn labels y it is 7 times the mean
    assert float(found.std()) < float(found.mean())


def softmax_divergence(weight: Tensor, rounded: Tensor, inputs: Tensor) -> float:
    """KL(p ‖ p') of a model that is one layer and a softmax, in nats a token."""
    p, q = ((inputs @ w.T).log_softmax(-1) for w in (weight, rounded))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_expected_divergence_is_near_the_measured(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(48, 96, generator=generator, dtype=torch.float64) / 30
    mixing = torch.randn(96, 96, generator=generator, dtype=torch.float64) / 10
    inputs = torch.randn(4096, 96, generator=generator, dtype=torch.float64) @ (torch.eye(96) + mixing)
    p = (inputs @ weight.T).softmax(-1)
    hessian = inputs.T @ inputs / len(inputs)
    rounded = gptq_round(weight, inverse_factor(hessian), bits)
    (sample,) = samples([weight.float()], Shared(hessian.float()), [Width(bits)], None)
    worth = Worth(sample)
    # the root mean square of a direction of the predictions
    worth.add(worth.moved(inputs.float()), (p * (1 - p)).sqrt().float())
    measured = softmax_divergence(weight, rounded, inputs)
    assert float(worth.divergences(len(inputs))) == pytest.approx(measured, rel=0.3)
