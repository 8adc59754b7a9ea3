"""Whatever call of a layer fails, on whatever road: the run ends, and the report tells of that layer alone.

Every call that the package makes to torch or to a toolkit while it has a layer is listed by a run without
faults. Then each of them fails once, in another layer each, as many to a run as there are layers to spare.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from faults import Calls, Site

import magr_gptq
from magr_gptq.toolkits.report import LayerReport, RunReport

pytestmark = pytest.mark.long

BITS, GROUP, BLOCKS, LAYERS = 3, 16, 6, 42
# layers of a run that are left in peace
PEACEFUL = 7
# settings are looked up before; what follows when a layer is done is its dtype, which the toolkit alone would
# give it, too, and the report
EXEMPT = ("quantize_layer", "_setting", "_result", "write_back", "of")


@dataclass(frozen=True)
class Road:
    """A toolkit's run on a model in a folder; what it reports, and how many layers it rounded to nearest.

    watched: has every layer's calls watched.
    """

    toolkit: str
    module: str
    run: Callable[[str], tuple[RunReport, int]]
    watched: Callable[[pytest.MonkeyPatch, Calls], None]


def by_gptqmodel(folder: str) -> tuple[RunReport, int]:
    from gptqmodel_runs import quantize

    model = quantize(folder, bits=BITS, group_size=GROUP, magr=True)
    to_nearest = [row for row in model.quant_log if row["loss"] == "rtn fallback"]
    return model.quantize_config.magr_report, len(to_nearest)


def by_optimum(folder: str, road: str = "optimum") -> tuple[RunReport, int]:
    from optimum_runs import QUANTIZE

    model = QUANTIZE[road](folder, Path("out"), bits=BITS, group_size=GROUP, magr=True)
    return model.quantize_config.magr_report, 0


def by_transformers(folder: str) -> tuple[RunReport, int]:
    return by_optimum(folder, "transformers")


def by_autogptq(folder: str) -> tuple[RunReport, int]:
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

    config = BaseQuantizeConfig(BITS, GROUP, desc_act=False, magr=True)
    model = AutoGPTQForCausalLM.from_pretrained(folder, config)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tiny.calibration_rows()]
    model.quantize(rows, batch_size=8)
    return model.quantize_config.magr_report, 0


def by_llmcompressor(folder: str) -> tuple[RunReport, int]:
    from llmcompressor_runs import quantize, scheme

    from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier

    modifier = MagRGPTQModifier(
        config_groups=scheme(BITS, GROUP), ignore=["lm_head"], batched_quantization=None
    )
    quantize([modifier], folder)
    return modifier.magr_report, len(modifier._rtn_fallback_module_names)


def watch_gptqmodel(patch: pytest.MonkeyPatch, calls: Calls) -> None:
    from gptqmodel.quantization.gptq import GPTQ

    from magr_gptq.toolkits.gptqmodel import adapter

    real = GPTQ.quantize

    def quantize(self: Any, blocksize: int = 128) -> Any:
        with calls.of(adapter._name(self)):
            return real(self, blocksize)

    patch.setattr(GPTQ, "quantize", quantize)


def watch_autogptq(patch: pytest.MonkeyPatch, calls: Calls) -> None:
    from auto_gptq.quantization.gptq import GPTQ

    from magr_gptq.toolkits.autogptq import adapter

    real = GPTQ.fasterquant

    def fasterquant(self: Any, **settings: Any) -> Any:
        with calls.of(adapter._run.get().names[id(self.layer)]):
            return real(self, **settings)

    patch.setattr(GPTQ, "fasterquant", fasterquant)


def watch_llmcompressor(patch: pytest.MonkeyPatch, calls: Calls) -> None:
    from magr_gptq.toolkits.llmcompressor import MagRGPTQModifier

    real = MagRGPTQModifier._compress_batch

    def compress(self: Any, batch: list[Any]) -> None:
        with calls.of(self._module_names[batch[0]]):
            real(self, batch)

    patch.setattr(MagRGPTQModifier, "_compress_batch", compress)


FAULTS = (torch.linalg.LinAlgError, torch.OutOfMemoryError)
ROADS = {
    "GPTQModel": Road("gptqmodel", "gptqmodel", by_gptqmodel, watch_gptqmodel),
    "AutoGPTQ": Road("auto-gptq", "auto_gptq", by_autogptq, watch_autogptq),
    "optimum": Road("optimum", "gptqmodel", by_optimum, watch_gptqmodel),
    "transformers": Road("optimum", "gptqmodel", by_transformers, watch_gptqmodel),
    "llm-compressor": Road("llm-compressor", "llmcompressor", by_llmcompressor, watch_llmcompressor),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        patch.setitem(tiny.SHAPES, "blocks", {**shape, "num_hidden_layers": BLOCKS})
        return str(tiny.save_tiny_model("blocks", tmp_path_factory.mktemp("faults") / "model"))


def run(road: Road, model: str, calls: Calls) -> tuple[RunReport, int]:
    with magr_gptq.enabled(road.toolkit), pytest.MonkeyPatch.context() as patch:
        road.watched(patch, calls)
        return road.run(model)


def shared_out(left: set[Site], seen: dict[str, set[Site]], turn: int) -> dict[str, Site]:
    """A call for each layer that makes it; every turn begins at another layer."""
    layers, armed = sorted(seen), {}
    for layer in (layers[turn % LAYERS :] + layers[: turn % LAYERS])[PEACEFUL:]:
        site = next((site for site in sorted(left & seen[layer]) if site not in armed.values()), None)
        if site is not None:
            armed[layer] = site
    return armed


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "name", [name for name, road in ROADS.items() if importlib.util.find_spec(road.module)]
)
def test_whatever_call_fails_the_run_ends_and_tells_of_its_layer_alone(
    name: str, fault: type[Exception], model: str, tmp_path, monkeypatch
) -> None:
    # GPTQModel writes ./logs
    monkeypatch.chdir(tmp_path)
    road, peace = ROADS[name], Calls()
    report, to_nearest = run(road, model, peace)
    assert (len(report.reduced), len(report.layers), to_nearest) == (LAYERS, LAYERS, 0)
    sites = set().union(*peace.seen.values())
    left = {site for site in sites if site.function not in EXEMPT}
    turns = 0
    while left:
        calls = Calls(shared_out(left, peace.seen, turns), fault)
        report, to_nearest = run(road, model, calls)
        found = {layer.name: layer for layer in report.layers}
        assert (len(report.layers), len(found), to_nearest) == (LAYERS, LAYERS, 0)
        # layers with one input share a factorization, and another layer may have computed it this time
        assert calls.fired
        for layer in found.values():
            assert is_told(layer, calls, fault), (layer, calls.armed.get(layer.name))
        left -= {calls.armed[layer] for layer in calls.fired}
        turns += 1


def is_told(layer: LayerReport, calls: Calls, fault: type[Exception]) -> bool:
    """Whether the report tells of a layer what became of it."""
    if layer.name not in calls.fired:
        return layer.outcome == "reduced"
    if layer.outcome == "reduced":
        # in less memory at once
        return fault is torch.OutOfMemoryError
    return layer.outcome == "skipped" and str(calls.armed[layer.name]) in layer.skipped
