"""Weights and Hessians at the edge of what numbers can do: a sound result, or a refusal with the remedy."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from prepared import prepared
from problems import hessian_of, weight_of
from rounding import round_rows

from magr_gptq import MagRConfig, reduce
from magr_gptq.reduction import solver
from magr_gptq.reduction.admm import Admm
from magr_gptq.reduction.hessian import BLOCKS, ScaledHessian, normalise, shifted_cholesky, squared_norm
from magr_gptq.reduction.penalty import LinfPenalty
from magr_gptq.reduction.prox import threshold
from magr_gptq.rounding.choice import criterion
from magr_gptq.toolkits.layer_step import Done
from magr_gptq.toolkits.report import LayerReport, RunReport

ROWS, COLUMNS = 6, 24
WEIGHT, HESSIAN = weight_of(ROWS, COLUMNS), hessian_of(COLUMNS)
NAN, INF = float("nan"), float("inf")


def with_entry(matrix: torch.Tensor, value: float) -> torch.Tensor:
    changed = matrix.clone()
    changed[1, 1] = value
    return changed


def without(*columns: int) -> torch.Tensor:
    """The Hessian of inputs that never reach these columns."""
    reached = torch.ones(COLUMNS)
    reached[list(columns)] = 0
    return HESSIAN * reached * reached[:, None]


def from_samples(count: int) -> torch.Tensor:
    x = torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(count))
    return x.T @ x


def lowered(share: float) -> torch.Tensor:
    """Indefinite by a share of the largest eigenvalue."""
    return HESSIAN - share * torch.linalg.eigvalsh(HESSIAN)[-1] * torch.eye(COLUMNS)


def conditioned(exponent: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(COLUMNS, COLUMNS, generator=generator, dtype=torch.float64))
    return ((basis * torch.logspace(0, -exponent, COLUMNS, dtype=torch.float64)) @ basis.T).float()


SOUND = {
    "one live column": (WEIGHT, without(*range(1, COLUMNS))),
    "dead columns": (WEIGHT, without(0, 5, 6, 23)),
    "rank 1": (WEIGHT, from_samples(1)),
    "rank 3": (WEIGHT, from_samples(3)),
    "indefinite by 1e-7": (WEIGHT, lowered(1e-7)),
    "indefinite by 1e-4": (WEIGHT, lowered(1e-4)),
    "indefinite by 1e-3": (WEIGHT, lowered(1e-3)),
    "condition 1e12": (WEIGHT, conditioned(12)),
    "one input 1e6 times the others": (WEIGHT, HESSIAN * (s := 1e6 ** torch.eye(COLUMNS)[0]) * s[:, None]),
    **{f"W times {s:g}": (WEIGHT * s, HESSIAN) for s in (1e-30, 1e-12, 1e-6, 1e6, 1e12)},
    **{f"H times {s:g}": (WEIGHT, HESSIAN * s) for s in (1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30)},
    **{f"both times {s:g}": (WEIGHT * s, HESSIAN * s) for s in (1e-12, 1e12)},
    "W tiny, H huge": (WEIGHT * 1e-12, HESSIAN * 1e12),
    "H in float64 times 1e300": (WEIGHT, HESSIAN.double() * 1e300),
    "H in float64 times 1e-300": (WEIGHT, HESSIAN.double() * 1e-300),
    "rows 24 orders apart": (WEIGHT * torch.logspace(-12, 12, ROWS)[:, None], HESSIAN),
    "zero weight": (WEIGHT * 0, HESSIAN),
    "a zero row": (with_entry(WEIGHT, 0) * (torch.arange(ROWS) > 0)[:, None], HESSIAN),
    "constant weight": (WEIGHT * 0 + 1, HESSIAN),
    "one row": (WEIGHT[:1], HESSIAN),
    "one column": (WEIGHT[:, :1], HESSIAN[:1, :1]),
    "one weight": (WEIGHT[:1, :1], HESSIAN[:1, :1]),
    "W in float16": (WEIGHT.half(), HESSIAN),
    "W in bfloat16": (WEIGHT.bfloat16(), HESSIAN),
    "W in float64": (WEIGHT.double(), HESSIAN.double()),
    "H in float16": (WEIGHT, HESSIAN.half()),
    "H in float16 whose sum overflows": (WEIGHT, (HESSIAN / HESSIAN.max() * 6e4).half()),
    "H in bfloat16": (WEIGHT, HESSIAN.bfloat16()),
}  # fmt: skip
SETTINGS = {
    "default": MagRConfig(gain=False),
    "linear": MagRConfig(alpha=1e-3, gain=False),
    "paper": MagRConfig(preset="paper", iterations=30, search=True),
    "refined": MagRConfig(refine=3, gain=False),
    "nearest": MagRConfig(rounding="nearest", refine=1, gain=False),
}
CASES = list(itertools.product(SOUND, SETTINGS, (-1, 7)))


def reference_scale(weight: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64, each row of the weight and the Hessian near 1."""
    largest = weight.double().abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0), hessian.double() / hessian.double().diagonal().mean()


@pytest.mark.parametrize(("case", "setting", "group_size"), CASES)
def test_numerics_reduce_is_finite_and_never_worse(case: str, setting: str, group_size: int) -> None:
    weight, hessian = SOUND[case]
    before = (weight.clone(), hessian.clone())
    found = reduce(weight, hessian, bits=2, group_size=group_size, config=SETTINGS[setting])
    assert found.weight.isfinite().all()
    assert found.weight.shape == weight.shape
    assert (found.objective_after <= found.objective_before).all()
    if group_size == -1:
        assert (found.largest_after <= found.largest_before).all()
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


@pytest.mark.parametrize(("case", "setting", "group_size"), CASES)
def test_numerics_layer_is_finite_and_never_worse(case: str, setting: str, group_size: int) -> None:
    weight, hessian = SOUND[case]
    layer = prepared(weight, hessian, bits=2, group_size=group_size, config=SETTINGS[setting])
    rounded = round_rows(layer, 2, group_size)
    plain = rounded.weight[: len(weight)].double()
    settled = layer.settle(rounded)
    for tensor in (settled.rounded.weight, settled.rounded.scale, settled.rounded.zero):
        assert tensor.isfinite().all()
    assert 0 <= settled.loss < INF
    if case in ("W times 1e-30", "rows 24 orders apart"):
        return  # the squares of the smallest lie below float32's range: nothing to compare by
    unit, normal = reference_scale(weight, hessian)
    errors = [
        squared_norm((weight.double() - q.double()) / unit, normal) for q in (settled.rounded.weight, plain)
    ]
    scale = squared_norm(weight.double() / unit, normal).abs()
    assert (errors[0] <= errors[1] * (1 + 1e-4) + 1e-5 * scale).all()


@pytest.mark.parametrize("setting", SETTINGS)
def test_numerics_a_group_wider_than_the_layer_is_the_whole_row(setting: str) -> None:
    whole, wider = (
        reduce(WEIGHT, HESSIAN, bits=2, group_size=size, config=SETTINGS[setting]).weight for size in (-1, 64)
    )
    if setting == "paper":  # whose α is another one with groups
        assert wider.isfinite().all()
    else:
        assert torch.equal(whole, wider)


@pytest.mark.parametrize("case", SOUND)
def test_numerics_the_default_with_its_gain_is_finite(case: str) -> None:
    weight, hessian = SOUND[case]
    layer = prepared(weight, hessian, bits=3, config=MagRConfig(refine=1))
    settled = layer.settle(round_rows(layer, 3))
    assert settled.rounded.weight.isfinite().all()
    assert settled.rounded.scale.isfinite().all()


REFUSED = {
    "NaN in W": (with_entry(WEIGHT, NAN), HESSIAN, "weight holds NaN"),
    "infinity in W": (with_entry(WEIGHT, -INF), HESSIAN, "weight holds NaN or infinity"),
    "NaN in H": (WEIGHT, with_entry(HESSIAN, NAN), "hessian holds NaN"),
    "infinity in H": (WEIGHT, with_entry(HESSIAN, INF), "hessian holds NaN or infinity"),
    "NaN next to H's diagonal": (WEIGHT, HESSIAN.index_fill(1, torch.tensor(3), NAN), "hessian holds NaN"),
    "W too large": (WEIGHT * 1e30, HESSIAN, "scale it down"),
    "W too large for float32": (WEIGHT.double() * 1e300, HESSIAN, "weight holds NaN or infinity"),
    "negative diagonal": (WEIGHT, lowered(1e-2), "on its diagonal"),
    "a diagonal of zeros": (WEIGHT, 1 - torch.eye(COLUMNS), "0 where its diagonal is"),
    "eigenvalues of -1": (WEIGHT, torch.eye(COLUMNS).flip(0) + 0.01 * torch.eye(COLUMNS), "more calibration"),
    "no rows": (WEIGHT[:0], HESSIAN, r"shape \(0, 24\)"),
    "no columns": (WEIGHT[:, :0], HESSIAN[:0, :0], r"shape \(6, 0\)"),
    "W of integers": (torch.ones(ROWS, COLUMNS, dtype=torch.int8), HESSIAN, "weight is torch.int8"),
    "W of complex numbers": (WEIGHT.to(torch.complex64), HESSIAN, "weight is torch.complex64"),
    "H of integers": (WEIGHT, torch.eye(COLUMNS).long(), "hessian is torch.int64"),
}


@pytest.mark.parametrize("make", [reduce, prepared], ids=["reduce", "Layer"])
@pytest.mark.parametrize(("weight", "hessian", "message"), REFUSED.values(), ids=REFUSED)
def test_numerics_refused_with_the_remedy(weight, hessian, message: str, make) -> None:
    with pytest.raises(ValueError, match=message):
        make(weight, hessian, bits=2)


def test_numerics_a_zero_hessian_leaves_every_row() -> None:
    with pytest.warns(UserWarning, match="Hessian is zero"):
        layer = prepared(WEIGHT, torch.zeros_like(HESSIAN), bits=2)
    settled = layer.settle(round_rows(layer, 2))
    assert torch.equal(layer.rows[-ROWS:], WEIGHT)
    assert settled.loss == 0


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_scale_of_the_hessian_does_not_matter_to_a_layer(factor: float, config: MagRConfig) -> None:
    one, other = (prepared(WEIGHT, HESSIAN * f, bits=2, config=config) for f in (1.0, factor))
    torch.testing.assert_close(one.rows, other.rows, rtol=0, atol=1e-5)
    settled = [layer.settle(round_rows(layer, 2)) for layer in (one, other)]
    assert settled[1].loss == pytest.approx(settled[0].loss, rel=1e-3)
    assert settled[1].squared_error == pytest.approx(settled[0].squared_error * factor, rel=1e-3)


@pytest.mark.parametrize("exponent", [-40, 40])
def test_powers_of_two_change_no_bit(exponent: int) -> None:
    plain, scaled = (reduce(WEIGHT, HESSIAN * 2.0**e, bits=2) for e in (0, exponent))
    assert torch.equal(plain.weight, scaled.weight)
    assert torch.equal(plain.objective_after * 2.0**exponent, scaled.objective_after)


def test_normalise_gives_back_its_unit() -> None:
    normal, unit = normalise(HESSIAN * 1000)
    assert torch.equal(normal * unit.float(), HESSIAN * 1000)
    assert 0.5 <= normal.diagonal().mean() < 1


@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_scaled_hessian_is_the_normalised_one(factor: float, dtype: torch.dtype, ordered: bool) -> None:
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1)) if ordered else None
    given = factor * HESSIAN.to(dtype)
    scaled, (normal, unit) = ScaledHessian(given, order), normalise(given)
    wanted = normal if order is None else normal[order][:, order]
    assert torch.equal(scaled.copy(), wanted)
    assert torch.equal(scaled.diagonal, wanted.diagonal())
    assert scaled.unit == unit
    rows = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(scaled.squared_norm_(rows.clone()), squared_norm(rows, wanted))
    assert torch.equal(given, factor * HESSIAN.to(dtype))


@pytest.mark.parametrize("columns", [1, 2, 5, COLUMNS])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_squared_norm_needs_one_triangle(columns: int, batch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(columns)
    rows = torch.randn(*batch, 4, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(*batch, 7, columns, generator=generator, dtype=torch.float64)
    outputs, size = rows @ x.mT, -(-columns // BLOCKS)
    hessian = x.mT @ x
    for start in range(0, columns, size):
        hessian[..., start : start + size, start + size :] = torch.nan
    torch.testing.assert_close(squared_norm(rows, hessian), outputs.square().sum(-1))


def test_a_shift_grows_only_where_it_must() -> None:
    shift = torch.full((COLUMNS,), 1e-3)
    factor, taken = shifted_cholesky(HESSIAN.clone, shift)
    assert torch.equal(taken, shift)
    torch.testing.assert_close(factor @ factor.T, HESSIAN + 1e-3 * torch.eye(COLUMNS))
    indefinite = HESSIAN - (torch.linalg.eigvalsh(HESSIAN)[0] + 5e-3) * torch.eye(COLUMNS)
    factor, taken = shifted_cholesky(indefinite.clone, shift)
    torch.testing.assert_close(taken, 10 * shift)
    torch.testing.assert_close(factor @ factor.T, indefinite + 1e-2 * torch.eye(COLUMNS))
    batch = torch.stack([HESSIAN, indefinite])
    factor, taken = shifted_cholesky(batch.clone, shift)
    torch.testing.assert_close(taken, torch.stack([shift, 10 * shift]))
    torch.testing.assert_close(factor @ factor.mT, batch + taken.diag_embed())


@pytest.mark.parametrize("squared", [False, True])
def test_nan_does_not_keep_the_threshold_searching(squared: bool) -> None:
    magnitudes = torch.tensor([[1.0, NAN, 2.0], [1.0, 3.0, 2.0]])
    alone = threshold(magnitudes[1:], torch.tensor(0.5), squared=squared)
    assert torch.equal(threshold(magnitudes, torch.tensor(0.5), squared=squared)[1:], alone)


@pytest.mark.parametrize("broken", [NAN, INF, 7.0], ids=["NaN", "infinity", "worse"])
def test_a_row_that_the_solver_spoils_is_kept_and_counted(broken: float, monkeypatch) -> None:
    minimise = Admm.minimise

    def spoil(self, original, penalty, iterations):
        found = minimise(self, original, penalty, iterations)
        found[2, 3] = broken
        return found

    whole = reduce(WEIGHT, HESSIAN, bits=2)
    monkeypatch.setattr(Admm, "minimise", spoil)
    found = reduce(WEIGHT, HESSIAN, bits=2)
    assert (whole.unimproved, found.unimproved) == (0, 1)
    assert torch.equal(found.weight[2], WEIGHT[2])
    others = torch.arange(ROWS) != 2
    assert torch.equal(found.weight[others], whole.weight[others])
    assert found.objective_after[2] == found.objective_before[2]
    layer = prepared(WEIGHT, HESSIAN, bits=2)
    report = RunReport()
    report.add(LayerReport.of("layer", 2, -1, Done(layer.settle(round_rows(layer, 2)), subnormal=0.0)))
    assert report.to_dict()[0]["unimproved"] == 1
    assert "1 rows keep their original weight" in report.summary()


def test_a_candidate_that_the_toolkit_spoils_is_not_chosen() -> None:
    layer = prepared(WEIGHT, HESSIAN, bits=2)
    rounded = round_rows(layer, 2)
    spoilt = rounded.weight.clone()
    spoilt[ROWS + 1 :, 4] = NAN  # all but plain GPTQ, and row 0 of the next
    settled = layer.settle(replace(rounded, weight=spoilt))
    assert settled.picked[1:].eq(0).all()
    assert settled.rounded.weight.isfinite().all()


def test_a_negative_shrinkage_counts_as_none() -> None:
    """As an indefinite Hessian gives it: it is no reason to keep the larger error."""
    error, shrinkage = torch.tensor([[1.0], [1.1]]), torch.tensor([[0.0], [-1.0]])
    assert criterion(error, shrinkage, kappa=3.0).argmin(0).tolist() == [0]


def test_a_row_spoilt_under_every_candidate_is_refused() -> None:
    layer = prepared(WEIGHT, HESSIAN, bits=2)
    rounded = round_rows(layer, 2)
    rounded.weight[1::ROWS, 4] = NAN
    with pytest.raises(ValueError, match="more damping"):
        layer.settle(rounded)


def test_memory_for_not_one_row_moves_the_layer_to_the_cpu(monkeypatch) -> None:
    """Stood in for: a device of its own memory, with room for nothing until the layer has left it."""
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1))
    whole = reduce(WEIGHT, HESSIAN, bits=2, order=order)
    rows_tried, minimise = [], Admm.minimise

    def short(self, original, *rest):
        rows_tried.append(len(original))
        if 1 not in rows_tried[:-1]:
            raise torch.OutOfMemoryError("no room")
        return minimise(self, original, *rest)

    monkeypatch.setattr(Admm, "minimise", short)
    monkeypatch.setattr(solver, "_has_own_memory", lambda _: True)
    with pytest.warns(UserWarning, match="reduced on the CPU") as caught:
        found = reduce(WEIGHT, HESSIAN, bits=2, order=order)
    assert len(caught) == 1
    assert rows_tried == [6, 3, 2, 1, 6]
    assert torch.equal(found.weight, whole.weight)


def test_memory_for_not_one_row_on_the_cpu_is_an_error(monkeypatch) -> None:
    def none(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(LinfPenalty, "levels", none)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it can't move to where it is
        with pytest.raises(torch.OutOfMemoryError):
            reduce(WEIGHT, HESSIAN, bits=2)
