"""A run that GPTQModel stopped goes on in another with `magr`: the same bits, and a report of every layer."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

import magr_gptq
from magr_gptq.toolkits.report import LayerReport, RunReport

pytest.importorskip("gptqmodel")

from gptqmodel import BACKEND
from gptqmodel.looper.checkpoint import CheckpointStopped
from gptqmodel.looper.checkpoint_store import CheckpointConfig, CheckpointError
from gptqmodel_runs import load

from magr_gptq.toolkits.gptqmodel import resume
from magr_gptq.toolkits.undamaged import UndamagedChain

pytestmark = pytest.mark.long

BLOCKS = 2


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    # GPTQModel writes ./logs
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.SHAPES, "llama", {**tiny.SHAPES["llama"], "num_hidden_layers": BLOCKS})
        return str(tiny.save_tiny_model("llama", tmp_path_factory.mktemp("llama") / "model"))


def quantize(folder: str, *, stop_in: int | None = None, beta: float = 0.9, **options):
    """A run that is told to stop while it is in this block."""
    settings = {"bits": 3, "group_size": 32, "magr": {"beta": beta}}
    quantized = load(folder, offload_to_disk=True, offload_to_disk_path="offload", **settings)

    def progress(layer_idx: int, **_) -> None:
        if layer_idx == stop_in:
            os.kill(os.getpid(), signal.SIGTERM)

    quantized.layer_callback = progress
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tiny.calibration_rows()]
    quantized.quantize(rows, batch_size=1, backend=BACKEND.TORCH, **options)
    return quantized


def test_stopped_twice_and_resumed_is_as_if_never_stopped(model: str) -> None:
    with magr_gptq.enabled("gptqmodel"):
        whole = quantize(model)
        checkpoint = CheckpointConfig(path="checkpoint")
        for block in range(BLOCKS):
            with pytest.raises(CheckpointStopped):
                quantize(model, stop_in=block, checkpoint=checkpoint)
        with pytest.raises(CheckpointError, match=r"incompatible .* quantization"):
            quantize(model, beta=0.8, checkpoint=checkpoint)
        resumed = quantize(model, checkpoint=checkpoint)
        for name, quantized in (("whole", whole), ("resumed", resumed)):
            quantized.save(name)
    reports = [
        sorted(run.quantize_config.magr_report.layers, key=lambda layer: layer.name)
        for run in (whole, resumed)
    ]
    assert reports[0] == reports[1]
    assert len(reports[1]) == 7 * BLOCKS
    bits = [load_file(Path(name, "model.safetensors")) for name in ("whole", "resumed")]
    assert bits[0].keys() == bits[1].keys()
    assert all(torch.equal(tensor, bits[1][name]) for name, tensor in bits[0].items())


def test_what_is_kept_can_be_any_report() -> None:
    layers = [
        LayerReport("a", 3, 128, largest_before=2.0, largest_after=1.0, loss=math.nan, unimproved=4),
        LayerReport("b", 3, 128, skipped="an embedding has no Hessian of its inputs"),
    ]
    runs = [SimpleNamespace(magr=object(), magr_report=RunReport()) for _ in range(2)]
    stopped, resumed = (
        SimpleNamespace(model=SimpleNamespace(quantize_config=run), processors=[]) for run in runs
    )
    runs[0].magr_report.layers += layers
    state, _ = resume._capture(lambda _self: ({"version": 3}, {}))(stopped)
    # text: the toolkit's own encoding takes no NaN
    assert json.loads(state["magr_report"])[1] == asdict(layers[1])
    resume._restore(lambda _self, _state, _artifacts: None)(resumed, state, {})
    assert repr(runs[1].magr_report.layers) == repr(layers)


@pytest.mark.parametrize("settings", [{}, {"magr": None}], ids=["no field", "off"])
def test_off_changes_no_checkpoint(settings: dict) -> None:
    config = SimpleNamespace(magr_report=RunReport(), **settings)
    task = SimpleNamespace(model=SimpleNamespace(quantize_config=config), processors=[])
    assert resume._capture(lambda _self: ({"version": 3}, {}))(task) == ({"version": 3}, {})
    resume._restore(lambda _self, _state, _artifacts: None)(task, {"version": 3}, {})
    assert not config.magr_report.layers


def test_a_checkpoint_without_the_unquantized_chain_is_refused(model: str) -> None:
    with magr_gptq.enabled("gptqmodel"):
        checkpoint = CheckpointConfig(path="checkpoint")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resume, "chains_of", lambda _: [])
            with pytest.raises(CheckpointStopped):
                quantize(model, stop_in=0, checkpoint=checkpoint)
        with pytest.raises(CheckpointError, match="start the run again"):
            quantize(model, checkpoint=checkpoint)


def test_a_chain_that_was_lost_stays_lost(monkeypatch) -> None:
    """What enters the next block is damaged, and must not be taken for undamaged."""
    report = RunReport()
    report.add(LayerReport("model.layers.0.mlp.up_proj", 3, 32))
    run = SimpleNamespace(
        model=SimpleNamespace(quantize_config=SimpleNamespace(magr_report=report)), processors=[]
    )
    before, after = UndamagedChain(), UndamagedChain()
    before.lost = True
    monkeypatch.setattr(resume, "chains_of", lambda _: [before])
    state, _ = resume._capture(lambda _self: ({}, {}))(run)
    monkeypatch.setattr(resume, "chains_of", lambda _: [after])
    resume._restore(lambda _self, _state, _artifacts: None)(run, json.loads(json.dumps(state)), {})
    assert after.lost
