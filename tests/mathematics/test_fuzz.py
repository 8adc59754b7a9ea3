"""Random layers under random settings; 200 examples each, 10,000 with --hypothesis-profile=long."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prepared import prepared
from problems import weight_of
from rounding import round_rows

from magr_gptq import MagRConfig, reduce
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.sweep import coordinate_descent

pytestmark = pytest.mark.long

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
STRENGTHS = st.floats(1e-4, 1e2)
BETAS = st.floats(0.5, 1.0)


@st.composite
def layers(draw):
    """A weight, the Hessian of a few samples or of many, some columns never reached, and an order or none."""
    rows, columns, seed = draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draw(st.integers(1, 80)), columns, generator=generator)
    x *= 10 ** (torch.randn(columns, generator=generator) * draw(st.floats(0, 1.5)))
    x[:, torch.rand(columns, generator=generator) < draw(st.sampled_from([0, 0, 0.3]))] = 0
    x[0, 0] += 1
    hessian = (x.T @ x * 10.0 ** draw(st.integers(-12, 12))).to(
        draw(st.sampled_from([torch.float32, torch.float64]))
    )
    weight = weight_of(rows, columns, seed) * 10.0 ** draw(st.integers(-3, 3))
    weight = weight.to(draw(DTYPES))
    order = torch.randperm(columns, generator=generator) if draw(st.booleans()) else None
    return weight, hessian, order


@st.composite
def configs(draw):
    common = {
        "refine": draw(st.integers(0, 2)),
        "gain": draw(st.booleans()),
        "rounding": draw(st.sampled_from(["gptq", "nearest"])),
        "iterations": draw(st.integers(1, 12)),
    }
    kind = draw(st.sampled_from(["default", "strength", "alpha", "paper", "pairs"]))
    if kind == "pairs":
        pairs = draw(st.lists(st.tuples(STRENGTHS, BETAS), min_size=1, max_size=3))
        return MagRConfig(search=pairs, **common)
    common["beta"] = draw(st.none() | BETAS)
    common["search"] = draw(st.sampled_from([None, True, False]))
    if kind == "strength":
        return MagRConfig(strength=draw(STRENGTHS), **common)
    if kind == "alpha":
        return MagRConfig(alpha=draw(st.floats(1e-6, 10)), **common)
    return MagRConfig(preset="paper" if kind == "paper" else "default", **common)


GROUPS = st.sampled_from([-1, 1, 3, 8, 16, 64])


@given(layer=layers(), config=configs(), bits=st.integers(2, 8), group_size=GROUPS)
def test_reduce_is_finite_never_worse_and_repeatable(layer, config, bits: int, group_size: int) -> None:
    weight, hessian, order = layer
    given_hessian = hessian.clone()
    found = reduce(weight, hessian, bits=bits, group_size=group_size, order=order, config=config)
    assert found.weight.isfinite().all()
    assert found.weight.dtype == torch.float32
    assert (found.objective_after <= found.objective_before).all()
    if group_size == -1:
        assert (found.largest_after <= found.largest_before).all()
    assert torch.equal(hessian, given_hessian)
    again = reduce(weight, hessian, bits=bits, group_size=group_size, order=order, config=config)
    assert torch.equal(again.weight, found.weight)


@given(layer=layers(), config=configs(), bits=st.integers(2, 8), group_size=GROUPS)
def test_what_a_layer_settles_for(layer, config, bits: int, group_size: int) -> None:
    """On its grid, finite, and where plain rounding was a candidate no row is worse than it."""
    weight, hessian, order = layer
    ready = prepared(weight, hessian, bits=bits, group_size=group_size, order=order, config=config)
    rounded = round_rows(ready, bits, group_size)
    settled = ready.settle(rounded)
    kept = settled.rounded
    assert kept.weight.isfinite().all()
    assert math.isfinite(settled.loss)
    codes = kept.weight / kept.scale[:, kept.group_of] + kept.zero[:, kept.group_of]
    torch.testing.assert_close(codes, codes.round().clamp(0, 2**bits - 1), rtol=0, atol=1e-3)
    if settled.plain_loss is not None and not config.resolve(bits).corrects_gain:
        original = weight.double()
        plain, end = (
            squared_norm(original - rows.double(), hessian.double())
            for rows in (rounded.weight[: len(weight)], kept.weight)
        )
        assert (end <= plain * (1 + 1e-3) + 1e-5 * squared_norm(original, hessian.double())).all()


@given(layer=layers(), bits=st.integers(2, 8), group_size=GROUPS, sweeps=st.integers(1, 3))
def test_refinement_never_raises_the_loss(layer, bits: int, group_size: int, sweeps: int) -> None:
    weight, hessian, _ = layer
    rounded = round_rows(prepared(weight, hessian, bits=bits, group_size=group_size), bits, group_size)
    plain, scale, zero = (x[: len(weight)].double() for x in (rounded.weight, rounded.scale, rounded.zero))
    scale, zero = scale[:, rounded.group_of], zero[:, rounded.group_of]
    plain = ((plain / scale + zero).round() - zero) * scale
    weight, hessian = weight.double(), hessian.double()
    top = 2**bits - 1
    found = coordinate_descent(plain, weight, hessian, scale, zero, lowest=0, highest=top, sweeps=sweeps)
    before, after = (squared_norm(weight - rows, hessian) for rows in (plain, found))
    assert (after <= before + 1e-9 * squared_norm(weight, hessian)).all()
    codes = found / scale + zero
    torch.testing.assert_close(codes, codes.round().clamp(0, top), rtol=0, atol=1e-6)
