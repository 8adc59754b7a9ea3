"""The mathematics of tuning: gradients against finite differences in float64, rounding, stopping."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from magr_gptq.tuning.descent import RATE, descent
from magr_gptq.tuning.linear import linear, weight
from magr_gptq.tuning.loss import divergence
from magr_gptq.tuning.stopping import PATIENCE, Best
from magr_gptq.tuning.stored import moved

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def a_layer(groups: int) -> Layer:
    """Inputs, scales, codes and groups in an order that no range of columns has."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 8, dtype=torch.float64, generator=draw)
    scales = torch.randn(5, groups, dtype=torch.float64, generator=draw)
    codes = torch.randint(-4, 4, (5, 8), dtype=torch.int8, generator=draw)
    return inputs, scales, codes, torch.tensor([2, 0, 0, 1, 2, 1, 0, 2]).clamp_max(groups - 1)


in_groups_and_rows = pytest.mark.parametrize("layer", [a_layer(3), a_layer(1)], ids=["groups", "rows"])


@in_groups_and_rows
def test_a_layer_is_the_product_with_its_dequantized_weight(layer: Layer) -> None:
    inputs, scales, codes, group = layer
    dense = torch.tensor(
        [[float(scales[r, group[c]]) * int(codes[r, c]) for c in range(8)] for r in range(5)],
        dtype=torch.float64,
    )
    assert torch.equal(weight(scales, codes, group), dense)
    torch.testing.assert_close(linear(inputs, scales, codes, group), inputs @ dense.T)


@in_groups_and_rows
def test_the_gradients_of_a_layer_are_finite_differences(layer: Layer) -> None:
    inputs, scales, codes, group = layer
    leaves = tuple(tensor.clone().requires_grad_() for tensor in (inputs, scales))
    assert gradcheck(lambda x, s: linear(x, s, codes, group), leaves)


@in_groups_and_rows
def test_a_layer_whose_inputs_need_no_gradient_gives_its_scales_theirs(layer: Layer) -> None:
    inputs, scales, codes, group = layer
    scales = scales.clone().requires_grad_()
    (found,) = torch.autograd.grad(linear(inputs, scales, codes, group).square().sum(), scales)
    (wanted,) = torch.autograd.grad((inputs @ weight(scales, codes, group).T).square().sum(), scales)
    torch.testing.assert_close(found, wanted)


def test_the_divergence_is_its_formula_and_its_gradient_a_finite_difference() -> None:
    draw = torch.Generator().manual_seed(1)
    p, q = (torch.randn(2, 3, 7, generator=draw) for _ in range(2))
    wanted = sum(
        math.exp(a) * (a - b)
        for a, b in zip(
            p.double().log_softmax(-1).flatten().tolist(),
            q.double().log_softmax(-1).flatten().tolist(),
            strict=True,
        )
    )
    assert float(divergence(p, q)) == pytest.approx(wanted, rel=1e-5)
    q.requires_grad_()
    (found,) = torch.autograd.grad(divergence(p, q), q)
    # q − p, of every position
    torch.testing.assert_close(found, q.softmax(-1) - p.softmax(-1), rtol=1e-4, atol=1e-6)
    assert float(divergence(p, p)) == 0


def test_no_gradient_goes_into_the_unquantized_model() -> None:
    p, q = torch.randn(2, 7).requires_grad_(), torch.randn(2, 7).requires_grad_()
    divergence(p, q).backward()
    assert p.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_tuned_is_what_the_file_holds_and_the_gradient_sees_no_rounding(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)
    base = torch.randn(50, generator=draw).to(dtype).float()
    offset = (1e-3 * torch.randn(50, generator=draw)).requires_grad_()
    found = moved(base, base, offset, dtype)
    assert torch.equal(found, (base * (1 + offset)).to(dtype).float())
    (slope,) = torch.autograd.grad(found.sum(), offset)
    assert torch.equal(slope, base)


def test_without_a_step_nothing_moves() -> None:
    base = torch.tensor([1.0, -6e-8, 0.0, 65504.0])
    assert torch.equal(moved(base, base, torch.zeros(4), torch.float16), base.half().float())


def test_nothing_moves_where_rounding_leaves_less_than_no_divergence() -> None:
    adam, _ = descent([torch.zeros(3, requires_grad=True)], 10, -4e-12, layers=4)
    assert adam.param_groups[0]["lr"] == 0


def test_the_rate_falls_to_nothing() -> None:
    offset = torch.zeros(1, requires_grad=True)
    adam, schedule = descent([offset], 10, 0.04, layers=25)
    rates = []
    for _ in range(10):
        rates.append(adam.param_groups[0]["lr"])
        offset.grad = torch.ones(1)
        adam.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2 * RATE / 5)
    assert rates == sorted(rates, reverse=True)
    assert adam.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_best_is_kept_as_it_was_then() -> None:
    best, values = Best(), torch.zeros(1)
    for loss in (3.0, 1.0, 2.0, float("nan")):
        best.offer(loss, [values])
        values += 1
    assert best.at == 1
    assert best.values[0].item() == 1
    assert math.isnan(best.losses[3])


def test_the_start_is_kept_where_nothing_is_better_and_patience_ends() -> None:
    best = Best()
    best.offer(1.0, [torch.zeros(1)])
    for _ in range(PATIENCE):
        assert not best.exhausted
        best.offer(1.0, [torch.ones(1)])
    assert best.exhausted
    assert best.at == 0
    assert best.values[0].item() == 0
