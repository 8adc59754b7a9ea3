"""A layer's way through a rounding loop, with a plain GPTQ in the toolkit's place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prepared import Prepared, prepared
from problems import hessian_of, weight_of

from eval.lib.baselines import gptq_grid, gptq_round, inverse_factor
from magr_gptq import MagRConfig, reduce
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.choice import KAPPA
from magr_gptq.rounding.kept import Held, Kept
from magr_gptq.rounding.layer import prepare
from magr_gptq.rounding.rounded import Rounded
from magr_gptq.rounding.sweep import coordinate_descent

BITS = 2


def toolkit(layer: Prepared, hessian: torch.Tensor) -> Rounded:
    """What a toolkit makes of the layer's rows: one symmetric scale a row."""
    weight, scale = gptq_grid(layer.rows, inverse_factor(hessian), BITS, beta=layer.factors)
    zero = torch.full_like(scale, 2 ** (BITS - 1))
    return Rounded(weight, scale, zero, torch.zeros(weight.shape[1], dtype=torch.int32))


def settle(config: MagRConfig, rows: int = 16, columns: int = 96):
    weight, hessian = weight_of(rows, columns), hessian_of(columns)
    layer = prepared(weight, hessian, bits=BITS, config=config)
    return weight, hessian, layer, layer.settle(toolkit(layer, hessian))


@pytest.mark.parametrize("config", [MagRConfig(gain=False), MagRConfig(gain=False, strength=0.1)])
def test_no_row_is_above_plain_gptqs_criterion(config: MagRConfig) -> None:
    """By choice where plain GPTQ is a candidate; else as the penalty foresees it."""
    weight, hessian, _, settled = settle(config)
    plain = squared_norm(weight - gptq_round(weight, inverse_factor(hessian), BITS), hessian)
    error = squared_norm(weight - settled.rounded.weight, hessian)
    assert (error <= plain * (1 + 1e-6)).all()
    assert (error < plain * 0.9).any()
    assert settled.plain_loss is None or settled.loss < settled.plain_loss
    assert settled.loss == pytest.approx(float(error.sum() / squared_norm(weight, hessian).sum()), rel=1e-5)
    assert settled.squared_error == pytest.approx(float(error.sum()), rel=1e-5)


def test_each_row_keeps_the_candidate_of_least_criterion() -> None:
    config = MagRConfig(search=[(0.03, 0.8), (0.25, 1.0)], gain=False, refine=0)
    weight, hessian, layer, settled = settle(config)
    quantized = toolkit(layer, hessian).weight.view(3, *weight.shape)
    strengths = (None, 0.03, 0.25)
    for row, picked in enumerate(settled.picked.tolist()):
        scores = []
        for strength, candidate in zip(strengths, quantized[:, row], strict=True):
            shrunk = weight
            if strength:
                shrunk = reduce(weight, hessian, bits=BITS, config=MagRConfig(strength=strength)).weight
            error, shrinkage = weight[row] - candidate, weight[row] - shrunk[row]
            scores.append(float(error @ hessian @ error + KAPPA * (shrinkage @ hessian @ shrinkage)))
        assert scores[picked] == pytest.approx(min(scores), rel=1e-5)
        torch.testing.assert_close(settled.rounded.weight[row], quantized[picked, row])
    assert len(set(settled.picked.tolist())) > 1


@pytest.mark.parametrize("config", [MagRConfig(), MagRConfig(gain=True, refine=4)], ids=["gain", "both"])
def test_what_is_kept_lies_on_its_own_grid(config: MagRConfig) -> None:
    *_, settled = settle(config)
    codes = settled.rounded.weight / settled.rounded.scale + settled.rounded.zero
    torch.testing.assert_close(codes, codes.round().clamp(0, 3), rtol=0, atol=1e-4)


def test_without_a_search_every_row_is_reduced_by_the_one_pair() -> None:
    weight, hessian, layer, settled = settle(MagRConfig(search=False, gain=False))
    reduced = reduce(weight, hessian, bits=BITS).weight
    torch.testing.assert_close(layer.rows, reduced)
    assert settled.picked.eq(0).all()
    assert settled.plain_loss is None
    assert settled.largest_after == pytest.approx(float(reduced.abs().amax(1).mean()))


def test_refinement_lowers_the_loss_and_the_paper_preset_does_nothing_unasked() -> None:
    plain, refined = (settle(MagRConfig(preset="paper", iterations=20, refine=sweeps)) for sweeps in (0, 5))
    torch.testing.assert_close(plain[3].rounded.weight, toolkit(plain[2], plain[1]).weight)
    assert refined[3].loss < plain[3].loss


def test_groups_and_codes_below_zero() -> None:
    """As llm-compressor counts: codes from −2 to 1, zero point 0."""
    weight, hessian = weight_of(8, 64), hessian_of(64)
    layer = prepared(weight, hessian, bits=BITS, group_size=16, config=MagRConfig(refine=2, strength=0.1))
    quantized, scale = gptq_grid(layer.rows, inverse_factor(hessian), BITS, 16, layer.factors)
    assert scale.lt(0).any()
    group_of = torch.arange(64) // 16
    settled = layer.settle(Rounded(quantized, scale, torch.zeros_like(scale), group_of, lowest=-2))
    codes = settled.rounded.weight / settled.rounded.scale[:, group_of]
    torch.testing.assert_close(codes, codes.round().clamp(-2, 1), rtol=0, atol=1e-3)
    assert settled.loss < settled.plain_loss


def test_rows_are_independent_and_the_hessian_stays() -> None:
    weight, hessian = weight_of(16, 96), hessian_of(96)
    before = hessian.clone()
    whole = prepared(weight, hessian, bits=BITS)
    some = prepared(weight[4:9], hessian, bits=BITS)
    picked = whole.settle(toolkit(whole, hessian)).rounded.weight[4:9]
    torch.testing.assert_close(
        some.settle(toolkit(some, hessian)).rounded.weight, picked, rtol=1e-4, atol=1e-5
    )
    assert torch.equal(hessian, before)


def in_groups(config: MagRConfig, rows: int = 12, columns: int = 96, group_size: int = 32):
    weight, hessian = weight_of(rows, columns), hessian_of(columns)
    layer = prepared(weight, hessian, bits=BITS, group_size=group_size, config=config)
    quantized, scale = gptq_grid(layer.rows, inverse_factor(hessian), BITS, group_size, layer.factors)
    zero, group_of = torch.full_like(scale, 2 ** (BITS - 1)), torch.arange(columns) // group_size
    return weight, hessian, layer, layer.settle(Rounded(quantized, scale, zero, group_of)).rounded


def test_plain_gptq_keeps_its_step_where_groups_choose() -> None:
    weight, _, layer, _ = in_groups(MagRConfig(strength=0.1))
    assert layer.factors.shape[1] > 1
    assert layer.factors[: len(weight)].eq(1).all()
    assert layer.factors[len(weight) :].lt(1).any(1).all()


def cost(weight: torch.Tensor, hessian: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Of every row: its error, and κ times the bias of its output."""
    energy = squared_norm(weight, hessian)
    slope = (weight @ hessian * quantized).sum(1) / energy
    return squared_norm(weight - quantized, hessian) + KAPPA * (1 - slope) ** 2 * energy


@pytest.mark.parametrize("refine", [0, 3])
def test_scales_in_groups_have_the_least_error_and_bias_together(refine: int) -> None:
    weight, hessian, _, kept = in_groups(MagRConfig(refine=refine))
    codes = kept.weight / kept.scale[:, kept.group_of]
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    least = cost(weight, hessian, kept.weight)
    generator = torch.Generator().manual_seed(0)
    for size in (0.05, 0.01) * 10:
        factors = 1 + size * torch.randn(kept.scale.shape, generator=generator)
        other = replace(kept, weight=kept.weight.clone()).rescale_(factors).weight
        assert (cost(weight, hessian, other) >= least * (1 - 1e-4)).all()


def test_every_sweep_starts_from_scales_of_least_error_and_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []

    def seen(quantized, original, hessian, *_, **grid):
        costs.append([cost(original, hessian, quantized * gain) for gain in (0.99, 1.0, 1.01)])
        return coordinate_descent(quantized, original, hessian, *_, **grid)

    monkeypatch.setattr("magr_gptq.rounding.settle.coordinate_descent", seen)
    settle(MagRConfig(refine=3))
    assert len(costs) == 3
    for smaller, as_it_is, larger in costs:
        assert (as_it_is < torch.minimum(smaller, larger)).all()


def test_candidates_one_by_one_leave_what_they_leave_together() -> None:
    weight, hessian = weight_of(16, 96), hessian_of(96)
    config = MagRConfig(refine=0, search=[(0.04, 1.0), (0.2, 0.8)])
    plan = config.resolve(BITS, -1)
    whole = prepared(weight, hessian, bits=BITS, config=config)
    together = Kept.of(whole.layer, toolkit(whole, hessian))
    kept = None
    for number in range(len(plan.candidates)):
        alone = Prepared(*one_of(prepare(weight, hessian, plan, numbers=[number])))
        found = Kept.of(alone.layer, toolkit(alone, hessian))
        kept = kept.or_better(found) if kept else found
    assert len(set(kept.picked.tolist())) > 1
    for name in ("picked", "criterion", "largest"):
        assert torch.equal(getattr(kept, name), getattr(together, name))
    for name in ("weight", "scale", "zero"):
        assert torch.equal(getattr(kept.rounded, name), getattr(together.rounded, name))
    assert kept.plain_error == together.plain_error


def one_of(found):
    layer, (rows,) = found
    return layer, rows


def test_a_layer_ends_in_the_memory_of_its_rounded_rows() -> None:
    """A second weight there would be the peak of large layers."""
    layer = prepared(weight_of(16, 96), hessian_of(96), bits=BITS, config=MagRConfig(search=False))
    rounded = toolkit(layer, hessian_of(96))
    assert layer.settle(rounded).rounded.weight.data_ptr() == rounded.weight.data_ptr()


@pytest.mark.parametrize("lowest", [0, -128])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_that_wait_are_what_they_were(groups: int, lowest: int) -> None:
    """Up to float32's rounding, which may differ by the order of operations alone."""
    torch.manual_seed(0)
    scale, zero = torch.rand(4, groups) - 0.5, torch.randint(0, 256, (4, groups)) + lowest
    scale[0, 0] = 0.0
    group_of = torch.arange(12, dtype=torch.int32) % groups
    codes = torch.cat([torch.randint(0, 256, (4, 10)), torch.tensor([[0, 255]]).expand(4, 2)], 1) + lowest
    weight = scale[:, group_of.long()] * (codes - zero[:, group_of.long()])
    kept = kept_of(Rounded(weight, scale, zero.float(), group_of, lowest))
    held = Held.of(kept)
    assert held.codes.dtype == torch.uint8
    assert held.kept.rounded.weight.numel() == 0
    released = held.released()
    torch.testing.assert_close(released.rounded.weight, weight, rtol=1e-6, atol=0)
    assert torch.equal(released.rounded.scale, scale)
    assert released.picked is kept.picked


def test_a_row_that_waits_and_is_not_finite_stays_so() -> None:
    """A byte can't hold NaN; as a code of 0 it would pass for a weight."""
    weight = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [1.0, 2.0]])
    ones = torch.ones(3, 1)
    released = Held.of(kept_of(Rounded(weight, ones, ones, torch.zeros(2, dtype=torch.int32)))).released()
    assert released.rounded.weight.isfinite().all(1).tolist() == [False, False, True]


def kept_of(rounded: Rounded) -> Kept:
    nothing = torch.zeros(len(rounded.weight))
    return Kept(rounded, nothing, nothing, nothing, None, 0)


def test_scales_are_those_that_float16_holds_where_it_holds_any() -> None:
    scale = torch.tensor([[0.1, 1e-9, 1e6]])
    rounded = Rounded(3 * scale, scale, torch.zeros(1, 3), torch.arange(3))
    stored = rounded.store_as_(torch.float16)
    assert stored.scale.tolist() == [[0.0999755859375, scale[0, 1].item(), scale[0, 2].item()]]
    torch.testing.assert_close(stored.weight, 3 * stored.scale)
