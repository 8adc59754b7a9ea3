"""Every toolkit's own loop gives a layer the pairs of both chains that stored inputs give."""

from __future__ import annotations

import pytest
import torch
from four_roads import ROADS
from tiny import calibration_rows, save_tiny_model
from transformers import AutoModelForCausalLM

import magr_gptq
from magr_gptq.toolkits import installed, layer_step

# the last layer to be rounded, the only one in its block that has as many columns
LAYER, COLUMNS = "model.layers.1.mlp.down_proj", 256


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("two-blocks", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
@torch.no_grad()
def undamaged(model: str) -> torch.Tensor:
    """What the layer is given in the unquantized model, [tokens, columns] float64."""
    seen = []
    loaded = AutoModelForCausalLM.from_pretrained(model).float()
    loaded.get_submodule(LAYER).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    for row in calibration_rows():
        loaded(input_ids=row[None])
    return torch.cat(seen).double()


def keep_inputs(road: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the toolkit takes a Hessian of from now on, at layers of so many columns, [tokens, columns]."""
    seen: list[torch.Tensor] = []
    if road == "llm-compressor":
        from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier as owner

        name, place = "calibrate_module", 2
    elif road == "auto-gptq":
        from auto_gptq.quantization.gptq import GPTQ as owner

        name, place = "add_batch", 1
    else:
        from gptqmodel.quantization.gptq import GPTQ as owner

        name, place = "add_batch", 1
    real = getattr(owner, name)

    def keep(*args: object, **kwargs: object) -> None:
        inputs = args[place][0] if road == "llm-compressor" else args[place]
        if inputs.shape[-1] == COLUMNS:
            seen.append(inputs.reshape(-1, COLUMNS).double().clone())
        real(*args, **kwargs)

    monkeypatch.setattr(owner, name, keep)
    return seen


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_pairs_are_those_of_the_stored_inputs(road: str, model: str, undamaged, monkeypatch) -> None:
    seen, targets = keep_inputs(road, monkeypatch), []
    real = layer_step.target_of

    def target_of(weight: torch.Tensor, halves: list) -> object:
        found = real(weight, halves)
        targets.append((weight.double(), halves, found))
        return found

    monkeypatch.setattr(layer_step, "target_of", target_of)
    with magr_gptq.enabled(road):
        ROADS[road](model)
    assert len(targets) == 14
    weight, halves, found = targets[-1]
    tokens = len(undamaged)
    damaged = torch.cat(seen)[-tokens:]
    assert [half.tokens for half in halves] == [tokens // 2] * 2
    torch.testing.assert_close(
        sum(half.gram.double() for half in halves), damaged.T @ damaged, rtol=1e-3, atol=1e-2
    )
    exact = (undamaged - damaged).T @ damaged
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(sum(half.cross.double() for half in halves), exact, rtol=1e-2, atol=2e-3)
    # it writes into the stream, which earlier layers have damaged
    assert all(half.stream.abs().max() > 0.1 for half in halves)
    assert 0 < found.strength <= 1
    # it comes nearer to the unquantized model's output than the layer's own weight does
    aimed_at = undamaged @ weight.T
    missed = (aimed_at - damaged @ weight.T).square().sum()
    assert (aimed_at - damaged @ found.weight.double().T).square().sum() < missed


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_the_original_model_is_not_needed_for_a_layers_own_output(road: str, model: str, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a second chain was kept")

    monkeypatch.setattr("magr_gptq.toolkits.undamaged.UndamagedChain.open", refuse)
    if road == "llm-compressor":
        monkeypatch.setattr(
            magr_gptq.toolkits.llmcompressor.modifier.MagRConfig, "aims_at_model", property(lambda _: False)
        )
    else:
        monkeypatch.setattr(magr_gptq.MagRConfig, "aims_at_model", property(lambda _: False))
    with magr_gptq.enabled(road):
        ROADS[road](model)
