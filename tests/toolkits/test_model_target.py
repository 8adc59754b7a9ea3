"""Every toolkit's own loop gives a layer the pairs of both chains that stored inputs give."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch
from four_roads import ROADS, given_to
from safetensors.torch import load_file
from tiny import calibration_rows, save_tiny_model

import magr_gptq
from magr_gptq.config import MagRConfig
from magr_gptq.reduction.target import shrinkage_by_documents
from magr_gptq.toolkits import installed, layer_step
from magr_gptq.toolkits.report import LayerReport, RunReport
from magr_gptq.toolkits.undamaged import UndamagedChain, _Here

# the last layer to be rounded, the only one in its block that has as many columns
LAYER, COLUMNS = "model.layers.1.mlp.down_proj", 256


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("two-blocks", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def undamaged(model: str) -> torch.Tensor:
    return given_to(model, LAYER)


def keep_inputs(road: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the toolkit takes a Hessian of from now on, at layers of so many columns, [tokens, columns]."""
    seen: list[torch.Tensor] = []
    if road == "llm-compressor":
        toolkit = importlib.import_module("magr_gptq.toolkits.llmcompressor")
        owner, name, place = toolkit.MagRGPTQModifier, "calibrate_module", 2
    else:
        module = "auto_gptq" if road == "auto-gptq" else "gptqmodel"
        owner, name, place = importlib.import_module(f"{module}.quantization.gptq").GPTQ, "add_batch", 1
    real = getattr(owner, name)

    @functools.wraps(real)
    def keep(*args: object, **kwargs: object) -> None:
        inputs = args[place][0] if road == "llm-compressor" else args[place]
        if inputs.shape[-1] == COLUMNS:
            seen.append(inputs.reshape(-1, COLUMNS).double().clone())
        real(*args, **kwargs)

    monkeypatch.setattr(owner, name, keep)
    return seen


def keep_streams(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the stream lacks where the layer writes into it from now on, [tokens, hidden]."""
    seen: list[torch.Tensor] = []
    missing = _Here.missing_stream

    def keep(self: _Here, place: str) -> torch.Tensor:
        found = missing(self, place)
        if place == "post_attention_layernorm":
            seen.append(found.flatten(0, -2).double())
        return found

    monkeypatch.setattr(_Here, "missing_stream", keep)
    return seen


def reports(monkeypatch: pytest.MonkeyPatch) -> list[LayerReport]:
    """Every layer that is reported from now on."""
    seen: list[LayerReport] = []
    add = RunReport.add
    monkeypatch.setattr(RunReport, "add", lambda self, layer: (seen.append(layer), add(self, layer)))
    return seen


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_pairs_are_those_of_the_stored_inputs(road: str, model: str, undamaged, monkeypatch) -> None:
    seen, targets, streams = keep_inputs(road, monkeypatch), [], keep_streams(monkeypatch)
    real = layer_step.target_of

    def target_of(weight: torch.Tensor, halves: list, rho: torch.Tensor) -> object:
        found = real(weight, halves, rho)
        # the list is emptied after this
        targets.append((list(halves), found))
        return found

    monkeypatch.setattr(layer_step, "target_of", target_of)
    done = reports(monkeypatch)
    with magr_gptq.enabled(road):
        ROADS[road](model)
    assert len(targets) == 14
    halves, found = targets[-1]
    tokens = len(undamaged)
    damaged = torch.cat(seen)[-tokens:]
    assert sum(half.whole for half in halves) == len(calibration_rows()) - 1
    torch.testing.assert_close(
        sum(half.gram.double() for half in halves), damaged.T @ damaged, rtol=1e-3, atol=1e-2
    )
    weight = load_file(f"{model}/model.safetensors")[f"{LAYER}.weight"].double()
    # it writes into the stream, which earlier layers have damaged
    stream = torch.cat(streams)[-tokens:]
    assert stream.abs().max() > 0.01
    exact = ((undamaged - damaged) @ weight.T + stream).T @ damaged
    torch.testing.assert_close(sum(half.lacking.double() for half in halves), exact, rtol=1e-2, atol=1e-2)
    assert 0 < found.strength <= 1
    # the Hessian was shrunk by what the halves disagree on
    report = done[-1]
    assert report.name.endswith(LAYER)
    assert report.correction == found.strength
    assert report.shrinkage == pytest.approx(float(shrinkage_by_documents(halves)))


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_tokens_are_weighed_where_attention_mixes_them(road: str, model: str, monkeypatch) -> None:
    """What rounds queries, keys and values is the Hessian of weighed tokens, at the size of the toolkit's."""
    weighed: list[bool] = []
    real = layer_step._regularised

    def regularised(given: layer_step.Given) -> object:
        whole = sum(half.gram for half in given.halves)
        weighed.append(all(half.weighed for half in given.halves))
        ratio = given.hessian.trace() / whole.trace()
        torch.testing.assert_close(given.hessian, whole * ratio, rtol=1e-3, atol=1e-3 * float(ratio))
        return real(given)

    monkeypatch.setattr(layer_step, "_regularised", regularised)
    with magr_gptq.enabled(road):
        ROADS[road](model)
    assert (weighed.count(True), len(weighed)) == (6, 14)


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_hidden_states_are_kept_where_the_toolkit_keeps_its_own(road: str, model: str, monkeypatch) -> None:
    """AutoGPTQ keeps them where a batch is run, unless it is asked to keep them on the CPU."""
    homes, run = [], UndamagedChain.run

    def noting(
        self: UndamagedChain,
        number: int,
        args: tuple,
        kwargs: dict,
        home: torch.device | None = None,
        **more: object,
    ) -> None:
        homes.append(home)
        run(self, number, args, kwargs, home, **more)

    monkeypatch.setattr(UndamagedChain, "run", noting)
    with magr_gptq.enabled(road):
        ROADS[road](model)
    assert set(homes) == {None if road == "auto-gptq" else torch.device("cpu")}


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_the_original_model_is_not_needed_for_a_layers_own_output(road: str, model: str, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a second chain was kept")

    monkeypatch.setattr("magr_gptq.toolkits.undamaged.UndamagedChain.open", refuse)
    monkeypatch.setattr(MagRConfig, "aims_at_model", property(lambda _: False))
    done = reports(monkeypatch)
    with magr_gptq.enabled(road):
        ROADS[road](model)
    assert len(done) == 14
    assert not any(layer.own_output or layer.correction is not None for layer in done)
