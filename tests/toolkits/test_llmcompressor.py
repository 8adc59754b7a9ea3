"""MagR inside the real llm-compressor: its recipes, its files, and what unmodified loaders read from them."""

from __future__ import annotations

import itertools
import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from forked import run_forked
from places import HELPERS
from tiny import SHAPES, save_tiny_model

import magr_gptq

pytest.importorskip("llmcompressor")

from compressed_tensors.offload import load_offloaded_model
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.recipe import Recipe
from llmcompressor_runs import digests, quantize, scheme, weights
from loguru import logger
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

pytestmark = pytest.mark.long

LAYERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
RECIPE = """
quantization_stage:
  quantization_modifiers:
    MagRGPTQModifier:
      ignore: [lm_head]
      magr: {beta: 0.9}
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 3, type: int, symmetric: false, strategy: group, group_size: 32}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


def run_vanilla(*arguments: str, cwd: Path) -> None:
    """A process that never imports magr_gptq (it checks that itself)."""
    done = run_forked(str(HELPERS / "dump_llmcompressor.py"), *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def modifier(*args, magr=True, **settings) -> MagRGPTQModifier:
    return MagRGPTQModifier(config_groups=scheme(*args, **settings), ignore=["lm_head"], magr=magr)


def tensors_of(folder: Path) -> dict[str, tuple]:
    return {name: (t.dtype, tuple(t.shape)) for name, t in load_file(folder / "model.safetensors").items()}


def test_off_gives_the_files_of_a_process_without_magr(tiny, tmp_path) -> None:
    with magr_gptq.enabled("llm-compressor"):
        quantize([modifier(3, 32, magr=False)], tiny, tmp_path / "off")
    run_vanilla("quantize", tiny, str(tmp_path / "vanilla"), cwd=tmp_path)
    assert digests(tmp_path / "off") == digests(tmp_path / "vanilla")


@pytest.mark.parametrize(("group_size", "symmetric"), [(-1, True), (32, False)])
def test_loaders_meet_the_tensors_that_they_know(group_size: int, symmetric: bool, tiny, tmp_path) -> None:
    args = (4, group_size, symmetric)
    quantize([GPTQModifier(config_groups=scheme(*args), ignore=["lm_head"])], tiny, tmp_path / "plain")
    quantize([modifier(*args)], tiny, tmp_path / "magr")
    found = tensors_of(tmp_path / "magr")
    assert found == tensors_of(tmp_path / "plain")
    name, groups = "model.layers.0.mlp.down_proj.", 1 if group_size == -1 else 256 // group_size
    expected = {
        "weight_packed": (torch.int32, (128, 256 * 4 // 32)),
        "weight_scale": (torch.float16, (128, groups)),
        "weight_shape": (torch.int64, (2,)),
    }
    if not symmetric:
        expected["weight_zero_point"] = (torch.int32, (128 * 4 // 32, groups))
    assert {n.removeprefix(name): t for n, t in found.items() if n.startswith(name)} == expected
    configs = [json.loads((tmp_path / kind / "config.json").read_text()) for kind in ("plain", "magr")]
    assert configs[0] == configs[1]
    files = [load_file(tmp_path / kind / "model.safetensors") for kind in ("plain", "magr")]
    assert not any(torch.equal(files[0][n], files[1][n]) for n in found if n.endswith("weight_packed"))


def test_every_layer_is_reduced_and_reported(tiny, tmp_path) -> None:
    used = modifier(3, 32, magr={"strength": 0.1})
    quantize([used], tiny, tmp_path / "out")
    report = used.magr_report
    assert sorted(layer.name for layer in report.reduced) == sorted(f"model.layers.0.{n}" for n in LAYERS)
    assert not report.skipped
    assert all(layer.largest_after < layer.largest_before for layer in report.layers)
    # a given strength has plain GPTQ beside it
    assert all(0 < layer.loss < 1 and layer.plain_share < 1 for layer in report.layers)
    assert {(layer.bits, layer.group_size) for layer in report.layers} == {(3, 32)}


def test_a_model_that_is_kept_on_disk_gives_the_same_files(tiny, tmp_path) -> None:
    quantize([modifier(3, 32)], tiny, tmp_path / "in-memory")
    places = {"max_memory": {"cpu": 200_000}, "offload_folder": str(tmp_path / "kept")}
    with load_offloaded_model():
        model = AutoModelForCausalLM.from_pretrained(tiny, device_map="auto_offload", **places)
    assert model.model.layers[0].mlp.down_proj._parameters.offload_device == "disk"
    quantize([modifier(3, 32)], model, tmp_path / "on-disk")
    assert digests(tmp_path / "on-disk") == digests(tmp_path / "in-memory")


@pytest.mark.parametrize("bits", [3, 4])
def test_widths_that_releases_pack_differently_are_told_with_the_release(bits: int, tiny, tmp_path) -> None:
    told: list[str] = []
    sink = logger.add(lambda message: told.append(str(message)), level="WARNING")
    quantize([modifier(bits, 32)], tiny, tmp_path / "out")
    logger.remove(sink)
    named = f"3-bit weights are packed as compressed-tensors {version('compressed-tensors')} packs them"
    assert any(named in message for message in told) == (bits == 3)


def test_yaml_recipes_name_the_modifier_once_enabled(tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="No modifier of type 'MagRGPTQModifier'"):
        Recipe.create_instance(RECIPE)
    with magr_gptq.enabled("llm-compressor"):
        quantize(RECIPE, tiny, tmp_path / "yaml")
        ModifierFactory.register("AnotherModifier", QuantizationModifier)
    assert ModifierFactory._registered_registry.pop("AnotherModifier") is QuantizationModifier
    with pytest.raises(ValueError, match="No modifier of type 'MagRGPTQModifier'"):
        Recipe.create_instance(RECIPE)
    quantize([modifier(3, 32, False, magr={"beta": 0.9})], tiny, tmp_path / "python")
    assert digests(tmp_path / "yaml") == digests(tmp_path / "python")


@pytest.mark.parametrize("magr", [None, False, True, {"beta": 0.9}, magr_gptq.MagRConfig(preset="paper")])
def test_recipes_that_are_written_hold_the_setting(magr) -> None:
    used = MagRGPTQModifier(scheme="W4A16", magr=magr)
    with magr_gptq.enabled("llm-compressor"):
        (read,) = Recipe.create_instance(Recipe.create_instance(used).yaml()).modifiers
    assert read.magr == used.magr == magr_gptq.MagRConfig.parse(magr)


MANY = list(itertools.product((2, 3, 4, 8), (-1, 32), (True, False)))
ORDERS = ("static", "weight", None)


@pytest.fixture(scope="module")
def round_trips(tmp_path_factory) -> dict:
    """For each actorder a model whose layers have a scheme each: as rounded, and as transformers loads it."""
    root = tmp_path_factory.mktemp("round-trips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "deep", {**SHAPES["llama"], "num_hidden_layers": 3})
        model = str(save_tiny_model("deep", root / "model"))
    names = [f"model.layers.{block}.{layer}" for block in range(3) for layer in LAYERS][: len(MANY)]
    rounded = {}
    for order in ORDERS:
        groups = {
            f"group_{name}": {"targets": [f"re:{name}$"], "weights": weights(*args)}
            for name, args in zip(names, MANY, strict=True)
        }
        # towards its own output a row keeps its sign
        modifier = MagRGPTQModifier(config_groups=groups, actorder=order, magr={"target": "layer"})
        quantized = quantize([modifier], model)
        layers = [dict(quantized.get_submodule(name).named_parameters()) for name in names]
        rounded[order] = [{key: value.detach().clone() for key, value in layer.items()} for layer in layers]
        quantized.save_pretrained(root / str(order))
    run_vanilla("dequantize", *(str(root / str(order)) for order in ORDERS), cwd=root)
    read = {order: torch.load(root / str(order) / "dequantized.pt") for order in ORDERS}
    return {order: (rounded[order], [read[order][name] for name in names]) for order in ORDERS}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index", range(len(MANY)), ids=map(str, MANY))
def test_transformers_reads_the_very_weights_that_were_rounded(index: int, order, round_trips) -> None:
    bits, group_size, symmetric = MANY[index]
    layer, read = (part[index] for part in round_trips[order])
    assert torch.equal(read, layer["weight"])
    zero, highest = layer["weight_zero_point"].int(), 2 ** (bits - 1) - 1
    if symmetric:
        assert not zero.any()
        assert (layer["weight_scale"] < 0).any()
    elif group_size == -1:
        # rows 0 and 1 have one sign only: their zero points lie at the ends of the field
        assert (zero[0], zero[1]) == (-highest - 1, highest)
    columns = read.shape[1] // zero.shape[1]
    scale, zero = (part.repeat_interleave(columns, 1) for part in (layer["weight_scale"], zero))
    codes = read.float() / scale.float() + zero
    # half precision keeps 11 bits of each product
    torch.testing.assert_close(codes, codes.round().clamp(-highest - 1, highest), atol=0.15, rtol=0)
