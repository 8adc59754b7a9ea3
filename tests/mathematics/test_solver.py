"""`reduce` and what must hold whatever it is given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import hessian_of, weight_of

from magr_gptq import MagRConfig, reduce
from magr_gptq.config.settings import STRENGTHS
from magr_gptq.reduction import solver
from magr_gptq.reduction.admm import Admm
from magr_gptq.reduction.groups import group_views
from magr_gptq.reduction.penalty import conditional_variances, derived_penalty

CONFIGS = [MagRConfig(), MagRConfig(strength=0.25), MagRConfig(alpha=1e-3), MagRConfig(preset="paper")]
NAMES = ["default", "stronger", "linear", "paper"]


@st.composite
def layers(draw):
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    group_size = draw(st.sampled_from([-1, 1, 4, 7, 16, 64]))
    seed = draw(st.integers(0, 1000))
    return weight_of(rows, columns, seed), hessian_of(columns, seed), draw(st.integers(2, 8)), group_size


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@settings(max_examples=50, deadline=None)
@given(layer=layers())
def test_objective_never_rises(config: MagRConfig, layer) -> None:
    weight, hessian, bits, group_size = layer
    found = reduce(weight, hessian, bits=bits, group_size=group_size, config=config)
    assert found.weight.isfinite().all()
    assert (found.objective_after <= found.objective_before).all()


@settings(max_examples=50, deadline=None)
@given(layer=layers())
def test_per_channel_no_row_grows(layer) -> None:
    weight, hessian, bits, _ = layer
    found = reduce(weight, hessian, bits=bits)
    assert (found.weight.abs().amax(1) <= weight.abs().amax(1)).all()
    assert torch.equal(found.largest_after, found.weight.abs().amax(1))
    assert torch.equal(found.largest_before, weight.abs().amax(1))


@settings(max_examples=50, deadline=None)
@given(layer=layers())
def test_with_groups_the_summed_penalty_does_not_grow(layer) -> None:
    weight, hessian, bits, group_size = layer
    penalty = derived_penalty(conditional_variances(hessian), bits, group_size, STRENGTHS[0])
    found = reduce(weight, hessian, bits=bits, group_size=group_size)
    assert (penalty.value(found.weight) <= penalty.value(weight)).all()


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("factor", [1e-8, 3.0, 1e8])
def test_scale_of_the_hessian_does_not_matter(config: MagRConfig, factor: float) -> None:
    weight, hessian = weight_of(16, 48), hessian_of(48)
    plain = reduce(weight, hessian, bits=3, group_size=16, config=config).weight
    scaled = reduce(weight, factor * hessian, bits=3, group_size=16, config=config).weight
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-5 * float(weight.abs().max()))


def test_scale_of_the_weight_passes_through_the_derived_penalty() -> None:
    weight, hessian = weight_of(8, 32), hessian_of(32)
    plain, scaled = (reduce(factor * weight, hessian, bits=2).weight for factor in (1.0, 1024.0))
    torch.testing.assert_close(scaled, 1024 * plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("group_size", [-1, 16, 20])
def test_order_is_a_change_of_coordinates(config: MagRConfig, group_size: int) -> None:
    weight, hessian = weight_of(8, 48), hessian_of(48)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    found = reduce(weight, hessian, bits=3, group_size=group_size, order=order, config=config).weight
    there = reduce(weight[:, order], hessian[order][:, order], bits=3, group_size=group_size, config=config)
    assert torch.equal(found[:, order], there.weight)


def test_paper_per_channel_is_equivariant_under_any_permutation() -> None:
    weight, hessian = weight_of(8, 48), hessian_of(48)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(4))
    config = MagRConfig(preset="paper")
    plain = reduce(weight, hessian, bits=3, config=config).weight
    permuted = reduce(weight, hessian, bits=3, order=order, config=config).weight
    torch.testing.assert_close(permuted, plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("group_size", [-1, 16])
def test_rows_are_independent_and_chunks_change_nothing(group_size: int, monkeypatch) -> None:
    weight, hessian = weight_of(9, 48), hessian_of(48)
    whole = reduce(weight, hessian, bits=2, group_size=group_size)
    monkeypatch.setattr(solver, "CHUNK_ELEMENTS", 2 * 48)
    chunked = reduce(weight, hessian, bits=2, group_size=group_size)
    # the products' summation order may differ with their shape
    torch.testing.assert_close(chunked.weight, whole.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(chunked.objective_after, whole.objective_after, rtol=1e-5, atol=0)


def test_a_device_gets_chunks_that_outlast_their_launches() -> None:
    for device, rows in (("cpu", 1024), ("meta", 4096)):
        layer = torch.empty((), device=device)
        assert solver._chunk_rows(layer.expand(8192, 4096)) == rows
        assert solver._chunk_rows(layer.expand(2, 8192, 4096)) == rows // 2
        assert solver._chunk_rows(layer.expand(8, 4096)) == 8


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("group_size", [-1, 16, 20])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_batch_is_its_layers(config: MagRConfig, group_size: int, ordered: bool, monkeypatch) -> None:
    monkeypatch.setattr(solver, "CHUNK_ELEMENTS", 3 * 4 * 48)
    weight = torch.stack([weight_of(9, 48, seed) for seed in range(3)])
    hessian = torch.stack([hessian_of(48, seed) * 1000.0**seed for seed in range(3)])
    generator = torch.Generator().manual_seed(5)
    orders = torch.rand(3, 48, generator=generator).argsort() if ordered else [None] * 3
    settings = {"bits": 2, "group_size": group_size, "config": config}
    whole = reduce(weight, hessian, order=orders if ordered else None, **settings)
    for layer in range(3):
        alone = reduce(weight[layer], hessian[layer], order=orders[layer], **settings)
        torch.testing.assert_close(whole.weight[layer], alone.weight, rtol=0, atol=1e-6)
        for name in ("objective_before", "objective_after", "largest_before", "largest_after"):
            torch.testing.assert_close(getattr(whole, name)[layer], getattr(alone, name), rtol=1e-4, atol=0)


def test_in_a_batch_each_layer_is_damped_and_skipped_by_itself() -> None:
    weight = torch.stack([weight_of(4, 16, seed) for seed in range(3)])
    sound, indefinite = hessian_of(16), hessian_of(16, seed=1)
    indefinite -= 1e-3 * torch.linalg.eigvalsh(indefinite)[-1] * torch.eye(16)
    hessian = torch.stack([sound, indefinite, torch.zeros(16, 16)])
    with pytest.warns(UserWarning, match="Hessian is zero"):
        found = reduce(weight, hessian, bits=2)
    for layer in range(2):
        alone = reduce(weight[layer], hessian[layer], bits=2)
        torch.testing.assert_close(found.weight[layer], alone.weight, rtol=0, atol=1e-6)
        assert (alone.objective_after <= alone.objective_before).all()
        assert alone.objective_after.sum() < alone.objective_before.sum()
    assert torch.equal(found.weight[2], weight[2])
    assert found.objective_after[2].eq(0).all()


def test_short_memory_halves_the_chunk(monkeypatch) -> None:
    weight, hessian = weight_of(9, 48), hessian_of(48)
    whole = reduce(weight, hessian, bits=2)
    sizes, minimise = [], Admm.minimise

    def short(self, rows, *rest):
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no room")
        return minimise(self, rows, *rest)

    monkeypatch.setattr(Admm, "minimise", short)
    found = reduce(weight, hessian, bits=2)
    assert sizes == [9, 5, 3, 3, 3]
    torch.testing.assert_close(found.weight, whole.weight, rtol=0, atol=1e-6)


def test_vanishing_penalty_gives_the_original() -> None:
    weight, hessian = weight_of(8, 32), hessian_of(32)
    for config in (
        MagRConfig(strength=1e-12),
        MagRConfig(alpha=1e-12),
        MagRConfig(preset="paper", alpha=1e-12),
    ):
        found = reduce(weight, hessian, bits=2, config=config).weight
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-4 * float(weight.abs().max()))


def test_zero_hessian_leaves_the_weight_with_a_warning() -> None:
    weight = weight_of(4, 16)
    with pytest.warns(UserWarning, match="Hessian is zero"):
        found = reduce(weight, torch.zeros(16, 16), bits=3)
    assert torch.equal(found.weight, weight)


def test_the_hessian_is_left_untouched() -> None:
    weight, hessian = weight_of(4, 16), hessian_of(16)
    for config in CONFIGS:
        before = hessian.clone()
        reduce(weight, hessian, bits=3, group_size=8, order=torch.arange(15, -1, -1), config=config)
        assert torch.equal(hessian, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_taken(dtype: torch.dtype) -> None:
    weight, hessian = weight_of(4, 16).to(dtype), hessian_of(16)
    found = reduce(weight, hessian, bits=3).weight
    assert found.dtype == torch.float32
    assert torch.equal(found, reduce(weight.float(), hessian, bits=3).weight)


def test_dead_columns_stay_finite() -> None:
    weight, hessian = weight_of(4, 16), hessian_of(16)
    hessian[5], hessian[:, 5] = 0, 0
    found = reduce(weight, hessian, bits=2, group_size=4)
    assert found.weight.isfinite().all()
    assert (found.objective_after <= found.objective_before).all()
    assert found.objective_after.sum() < found.objective_before.sum()


def test_conditional_variances_are_those_of_the_inverse() -> None:
    hessian = hessian_of(24, dtype=torch.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(conditional_variances(hessian), upper.diagonal() ** -2)


def test_derived_penalty_is_the_rounding_error_of_the_grid() -> None:
    """strength 1 is δ²/12·Σ 1/Uᵢᵢ² with δ = 2‖w‖∞/(2ᵇ − 1), for every group."""
    weight, hessian = weight_of(3, 12), hessian_of(12)
    error = conditional_variances(hessian)
    expected = torch.zeros(3)
    for start in range(0, 12, 5):
        step = 2 * weight[:, start : start + 5].abs().amax(1) / (2**3 - 1)
        expected += step**2 / 12 * error[start : start + 5].sum()
    penalty = derived_penalty(error, bits=3, group_size=5, strength=1.0)
    torch.testing.assert_close(penalty.value(weight), expected)


def test_group_views_cover_a_short_last_group() -> None:
    matrix = torch.arange(20.0).view(2, 10)
    views = group_views(matrix, 4)
    assert [tuple(view.shape) for view in views] == [(2, 2, 4), (2, 1, 2)]
    for view in views:
        view.neg_()
    assert torch.equal(matrix, -torch.arange(20.0).view(2, 10))


BAD = [
    ({"weight": torch.zeros(4)}, "matrix"),
    ({"weight": torch.ones(2, 2, 4)}, r"needs \(2, 4, 4\)"),
    ({"hessian": torch.eye(3)}, "hessian has shape"),
    ({"bits": 1}, "bits=1"),
    ({"bits": 2.5}, "bits=2.5"),
    ({"group_size": 0}, "group_size=0"),
    ({"weight": torch.full((2, 4), float("nan"))}, "weight holds NaN"),
    ({"hessian": torch.full((4, 4), float("inf"))}, "hessian holds NaN"),
    ({"hessian": -torch.eye(4)}, "diagonal"),
    ({"order": torch.tensor([0, 1, 1, 3])}, "permutation"),
    ({"order": torch.tensor([0, 1])}, "permutation"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_with_its_value(change: dict, message: str) -> None:
    arguments = {"weight": torch.ones(2, 4), "hessian": torch.eye(4), "bits": 3, **change}
    with pytest.raises(ValueError, match=message):
        reduce(arguments.pop("weight"), arguments.pop("hessian"), **arguments)
