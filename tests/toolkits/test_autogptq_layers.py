"""MagR in AutoGPTQ's column loop, one layer at a time: layouts, groups, dead columns, loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from problems import hessian_of, weight_of
from seams import orders_given
from short_memory import CALLS, end_memory

import magr_gptq

pytest.importorskip("auto_gptq")

from auto_gptq.quantization import gptq
from transformers.pytorch_utils import Conv1D

from magr_gptq.toolkits.autogptq import adapter
from magr_gptq.toolkits.report import RunReport


@pytest.fixture(autouse=True)
def _switched_on():
    with magr_gptq.enabled("auto-gptq"):
        yield


@contextmanager
def a_run(layer, bits: int, magr=True) -> Iterator[RunReport]:
    """What the toolkit's `quantize` sets up around its layers."""
    config, report = magr_gptq.MagRConfig.parse(magr), RunReport()
    token = adapter._run.set(config and adapter._Run(config, bits, report, {id(layer): "layer"}))
    try:
        yield report
    finally:
        adapter._run.reset(token)


def rounded(layer, hessian, bits: int, *, sym=False, magr=True, **settings):
    """The layer's quantized weight [out, in], its group indices, and the report."""
    task = gptq.GPTQ(layer)
    task.H, task.nsamples = hessian.clone(), 1
    task.quantizer.configure(bits, perchannel=True, sym=sym, mse=False)
    with a_run(layer, bits, magr) as report:
        _, _, g_idx = task.fasterquant(**settings)
    return adapter._to_matrix(layer), g_idx, report


def linear(matrix: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(matrix.shape[1], len(matrix), bias=False)
    layer.weight.data = matrix.clone()
    return layer


def conv1d(matrix: torch.Tensor) -> Conv1D:
    layer = Conv1D(len(matrix), matrix.shape[1])
    layer.weight.data = matrix.t().contiguous()
    return layer


def conv2d(matrix: torch.Tensor) -> torch.nn.Conv2d:
    layer = torch.nn.Conv2d(matrix.shape[1] // 9, len(matrix), kernel_size=3, bias=False)
    layer.weight.data = matrix.reshape(layer.weight.shape).clone()
    return layer


@pytest.mark.parametrize("make", [conv1d, conv2d])
@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": -1},
        {"group_size": 32, "actorder": True},
        {"group_size": 32, "actorder": True, "static_groups": True},
    ],
    ids=str,
)
def test_every_layout_is_rounded_as_the_linear_layer_of_the_same_matrix(make, settings) -> None:
    matrix, hessian = weight_of(40, 144), hessian_of(144)
    layer = make(matrix)
    shape = layer.weight.shape
    # a tipped code may change a whole row's choice and its gain
    magr = {"search": False, "gain": False}
    found, _, report = rounded(layer, hessian, 3, magr=magr, **settings)
    expected, _, _ = rounded(linear(matrix), hessian, 3, magr=magr, **settings)
    # another layout may add up in another order and tip a few codes
    assert ((found - expected).abs() > 1e-6).float().mean() < 0.01
    assert layer.weight.shape == shape
    assert (report.layers[0].name, report.skipped) == ("layer", [])
    assert report.layers[0].largest_after < report.layers[0].largest_before


@pytest.mark.parametrize("beta", [1.0, 0.7])
@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("actorder", [False, True])
def test_the_grid_spans_beta_times_the_range_of_the_reduced_weight(beta, group_size, actorder) -> None:
    matrix, hessian = weight_of(32, 128), hessian_of(128)
    config = magr_gptq.MagRConfig(beta=beta, search=False, gain=False, reorder=False)
    reduced = magr_gptq.reduce(matrix, hessian, bits=3, group_size=group_size, config=config).weight
    found, _, _ = rounded(
        linear(matrix), hessian, 3, sym=True, magr=config,
        group_size=group_size, actorder=actorder, static_groups=True,
    )  # fmt: skip
    size = 128 if group_size == -1 else group_size
    largest = reduced.unflatten(1, (-1, size)).abs().amax(2).repeat_interleave(size, dim=1)
    # symmetric codes reach from −4 to 3 steps of 2β·max/7
    codes = found / (beta * largest / 3.5)
    # the scales are float16's, which are right to one part in 2¹¹
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=4 * 2**-11)
    assert (int(codes.min().round()), int(codes.max().round())) == (-4, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_layer_keeps_its_dtype(dtype) -> None:
    layer = linear(weight_of(8, 64).to(dtype))
    found, _, _ = rounded(layer, hessian_of(64), 4)
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("dead", [[], [5], [5, 40, 41, 90]], ids=["none", "one", "several"])
@pytest.mark.parametrize("columns", [128, 150])
def test_groups_of_desc_act_are_the_toolkits_own(dead, columns, monkeypatch) -> None:
    hessian = hessian_of(columns)
    # dead columns count as 1: neither first nor last
    hessian /= hessian.diagonal().median()
    hessian[dead], hessian[:, dead] = 0, 0
    orders = orders_given(monkeypatch)
    _, g_idx, _ = rounded(linear(weight_of(8, columns)), hessian, 3, group_size=32, actorder=True)
    assert torch.equal(g_idx[orders[0]].long(), torch.arange(columns) // 32)


@pytest.mark.parametrize("settings", [{}, {"actorder": True, "static_groups": True}], ids=str)
def test_groups_without_reordering_are_the_toolkits_own(settings, monkeypatch) -> None:
    orders = orders_given(monkeypatch)
    _, g_idx, _ = rounded(linear(weight_of(8, 128)), hessian_of(128), 3, group_size=32, **settings)
    assert orders == [None]
    assert torch.equal(g_idx.long(), torch.arange(128) // 32)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("settings", [{}, {"group_size": 64}, {"group_size": 64, "actorder": True}], ids=str)
def test_output_error_is_below_that_of_plain_gptq(sym, settings) -> None:
    matrix, hessian = weight_of(64, 256), hessian_of(256)

    def loss(magr) -> float:
        change = rounded(linear(matrix), hessian, 2, sym=sym, magr=magr, **settings)[0] - matrix
        return float((change @ hessian * change).sum())

    assert loss(True) < 0.95 * loss(None)


def test_outside_a_run_layers_are_rounded_as_ever() -> None:
    matrix, hessian = weight_of(8, 64), hessian_of(64)
    ours = rounded(linear(matrix), hessian, 3, magr=None)[0]
    magr_gptq.disable()
    task = gptq.GPTQ(linear(matrix))
    task.H, task.nsamples = hessian.clone(), 1
    task.quantizer.configure(3, perchannel=True, sym=False, mse=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        task.fasterquant()
    assert torch.equal(ours, task.layer.weight.data)


def test_a_layer_with_bad_numbers_is_left_to_autogptq(caplog) -> None:
    """Which raises, as it does without MagR; the log says why."""
    bad = hessian_of(64) * float("nan")
    for magr in (None, True):
        with pytest.raises(torch.linalg.LinAlgError):
            rounded(linear(weight_of(8, 64)), bad, 3, magr=magr)
    assert "magr steps aside for layer: hessian holds NaN or infinity" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"group_size": 32, "actorder": True}])
def test_short_memory_rounds_the_candidates_one_by_one(settings, monkeypatch) -> None:
    """Stood in for: a device whose memory ends amid the columns of more rows than the layer has."""
    matrix, hessian = weight_of(16, 64), hessian_of(64)
    whole, *_ = rounded(linear(matrix), hessian, 3, **settings)
    tall = end_memory(monkeypatch, gptq.Quantizer, rows=16)
    with pytest.warns(UserWarning, match="one by one$") as caught:
        apart, _, report = rounded(linear(matrix), hessian, 3, **settings)
    assert len(caught) == 1
    assert tall == CALLS * [2 * 16]
    torch.testing.assert_close(apart, whole)
    assert len(report.reduced) == 1
