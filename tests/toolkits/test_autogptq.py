"""MagR inside the real AutoGPTQ: its loop, its files, its unmodified loader."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from bad_models import save_tiny
from covering import covering
from forked import run_forked
from places import HELPERS
from tiny import calibration_rows, save_tiny_model

import magr_gptq

pytest.importorskip("auto_gptq")

from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from auto_gptq.modeling import BaseGPTQForCausalLM, _base
from auto_gptq.quantization import gptq
from transformers import AutoModelForCausalLM, modeling_utils

from magr_gptq.toolkits import quantizer
from magr_gptq.toolkits.autogptq import adapter
from magr_gptq.toolkits.undamaged import UndamagedChain

pytestmark = pytest.mark.long

LLAMA_LAYERS = 7


@pytest.fixture(scope="module", autouse=True)
def _initialisers():
    # AutoGPTQ's loaders replace or switch them off for the whole process
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "uniform_", "normal_"):
            patch.setattr(torch.nn.init, name, getattr(torch.nn.init, name))
        patch.setattr(modeling_utils, "_init_weights", True)
        yield


@pytest.fixture
def switched_on():
    with magr_gptq.enabled("auto-gptq"):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {shape: str(save_tiny_model(shape, root / shape)) for shape in ("llama", "tail", "gpt2")}


def load(folder: str, **settings):
    return AutoGPTQForCausalLM.from_pretrained(folder, BaseQuantizeConfig(**settings))


def quantize(model):
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in calibration_rows()]
    model.quantize(rows, batch_size=8)
    return model


def run_vanilla(*arguments: str) -> None:
    """A process that never imports magr_gptq (it checks that itself)."""
    done = run_forked(str(HELPERS / "dump_autogptq.py"), *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(_content(path)).hexdigest() for path in sorted(folder.iterdir())}


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".safetensors":
        return content
    # safetensors writes the toolkit's metadata in an order that differs from call to call
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


ROUND_TRIPS = [
    *(
        ("llama", {"bits": bits, "group_size": group_size, "sym": sym, "desc_act": desc_act})
        for bits, group_size, sym, desc_act in covering(
            (2, 3, 4, 8), (-1, 32, 128), (True, False), (False, True)
        )
    ),
    ("llama", {"bits": 3, "group_size": 32, "sym": False, "desc_act": True, "static_groups": True}),
    ("llama", {"bits": 2, "group_size": 32, "sym": False, "desc_act": False, "static_groups": True}),
    ("gpt2", {"bits": 3, "group_size": 32, "sym": False, "desc_act": True, "static_groups": True}),
    ("gpt2", {"bits": 2, "group_size": -1, "sym": False, "desc_act": True}),
    # without desc_act the toolkit's own kernel can't multiply by a short last group
    ("tail", {"bits": 3, "group_size": 128, "sym": False, "desc_act": True}),
]


def label(shape: str, settings: dict) -> str:
    return "-".join(map(str, [shape, *settings.values()]))


@pytest.fixture(scope="module")
def round_trips(tiny, tmp_path_factory) -> Path:
    """Every checkpoint with the weights that GPTQ rounded to, then dequantized by a vanilla process."""
    root = tmp_path_factory.mktemp("round-trips")
    folders = [root / label(*case) for case in ROUND_TRIPS]
    with magr_gptq.enabled("auto-gptq"), pytest.MonkeyPatch.context() as patch:
        recorded, found_zeros = {}, []
        patch.setattr(gptq.GPTQ, "fasterquant", _recording(gptq.GPTQ.fasterquant, recorded))
        patch.setattr(quantizer, "shrink_grid", _noting_zeros(quantizer.shrink_grid, found_zeros))
        for (shape, settings), folder in zip(ROUND_TRIPS, folders, strict=True):
            recorded.clear()
            found_zeros.clear()
            quantize(load(tiny[shape], magr=True, **settings)).save_quantized(str(folder))
            torch.save({"layers": dict(recorded), "found_zeros": list(found_zeros)}, folder / "rounded.pt")
    run_vanilla("dequantize", *map(str, folders))
    return root


def _recording(original, recorded: dict):
    def fasterquant(self, *args, **kwargs):
        scale, zero, g_idx = original(self, *args, **kwargs)
        # packing changes the zero points in place
        recorded[adapter._run.get().names[id(self.layer)]] = (
            adapter._to_matrix(self.layer).clone(),
            scale.clone(),
            zero.clone(),
        )
        return scale, zero, g_idx

    return fasterquant


def _noting_zeros(original, found: list):
    def shrink_grid(scale, zero, **settings):
        found.append(zero.flatten().clone())
        return original(scale, zero, **settings)

    return shrink_grid


@pytest.mark.parametrize(("shape", "settings"), ROUND_TRIPS, ids=[label(*case) for case in ROUND_TRIPS])
def test_vanilla_loader_reads_the_very_weights_that_were_rounded(shape, settings, round_trips) -> None:
    folder = round_trips / label(shape, settings)
    rounded = torch.load(folder / "rounded.pt")
    read = torch.load(folder / "dequantized.pt")
    assert set(read) == set(rounded["layers"])
    for name, (weight, scale, zero) in rounded["layers"].items():
        assert scale.abs().min() > torch.finfo(torch.float16).tiny
        assert (scale < 0).any() or not settings["sym"]
        # weight and scale are each rounded to 11 bits: 2⁻¹⁰ together. A wrong code or zero point is
        # one scale off, at least 1/255 of the weight
        torch.testing.assert_close(read[name], weight.float(), rtol=1.01 * 2**-10, atol=0)
        assert zero.min() >= 1
        assert zero.max() <= 2 ** settings["bits"] - 1


ASYMMETRIC = [case for case in ROUND_TRIPS if case[0] == "llama" and not case[1]["sym"]]


@pytest.mark.parametrize("case", ASYMMETRIC, ids=[label(*case) for case in ASYMMETRIC])
def test_round_trips_meet_zero_points_at_both_ends(case, round_trips) -> None:
    rounded = torch.load(round_trips / label(*case) / "rounded.pt")
    # row 0 is never negative, row 1 never positive
    assert any(zero[0] == 0 for zero in rounded["found_zeros"])
    for row, end in ((0, 1), (1, 2 ** case[1]["bits"] - 1)):
        assert any((zero[row] == end).all() for _, _, zero in rounded["layers"].values())


def test_the_setting_is_saved_and_read_back(round_trips, switched_on) -> None:
    folder = round_trips / label(*ROUND_TRIPS[0])
    written = json.loads((folder / "quantize_config.json").read_text())
    assert written["magr"] == {"preset": "default"}
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == written
    assert BaseQuantizeConfig.from_pretrained(str(folder)).magr == magr_gptq.MagRConfig()


@pytest.fixture(scope="module")
def vanilla_digests(tiny, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("vanilla")
    run_vanilla("quantize", tiny["llama"], str(folder))
    return digests(folder)


@pytest.mark.parametrize("setting", [{}, {"magr": None}, {"magr": False}], ids=str)
def test_off_gives_the_files_of_a_process_without_magr(
    setting, tiny, tmp_path, vanilla_digests, switched_on
) -> None:
    model = quantize(load(tiny["llama"], bits=3, group_size=32, **setting))
    model.save_quantized(str(tmp_path))
    assert digests(tmp_path) == vanilla_digests
    assert len(vanilla_digests) == 3
    assert not any("magr" in path.read_text() for path in tmp_path.glob("*.json"))
    assert model.quantize_config.magr_report.layers == []


def test_conv1d_layers_are_all_reduced(tiny, switched_on) -> None:
    model = quantize(
        load(tiny["gpt2"], bits=3, group_size=32, desc_act=True, static_groups=True, magr={"strength": 0.1})
    )
    report = model.quantize_config.magr_report
    assert [layer.name.split(".", 3)[3] for layer in report.reduced] == [
        "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj",
    ]  # fmt: skip
    assert report.skipped == []
    assert all(layer.largest_after < layer.largest_before for layer in report.reduced)
    # a given strength has plain GPTQ beside it
    assert all(0 < layer.loss < layer.plain_loss for layer in report.reduced)
    logits = model.model.float()(input_ids=calibration_rows(1)).logits
    assert logits.isfinite().all()


def test_the_paper_preset_runs_in_the_loop(tiny, tmp_path, switched_on) -> None:
    setting = {"preset": "paper", "beta": 0.7}
    model = quantize(load(tiny["llama"], bits=3, magr=setting))
    report = model.quantize_config.magr_report
    assert len(report.reduced) == LLAMA_LAYERS
    assert {layer.beta for layer in report.layers} == {0.7}
    model.save_quantized(str(tmp_path))
    assert json.loads((tmp_path / "quantize_config.json").read_text())["magr"] == setting


class FusedGPTQ(BaseGPTQForCausalLM):
    """A user's own class for Phi-3, of which each block has two fused layers."""

    layer_type = "Phi3DecoderLayer"
    layers_block_name = "model.layers"
    outside_layer_modules: ClassVar = ["model.embed_tokens", "model.norm"]
    inside_layer_modules: ClassVar = [
        ["self_attn.qkv_proj"], ["self_attn.o_proj"], ["mlp.gate_up_proj"], ["mlp.down_proj"],
    ]  # fmt: skip


def test_a_users_own_class_of_fused_layers_is_quantized_and_read_back(
    tmp_path, monkeypatch, switched_on
) -> None:
    """AutoGPTQ PR #651: it knew no Phi-3, whose fused layers are linear layers as any."""
    monkeypatch.setattr(_base, "SUPPORTED_MODELS", [*_base.SUPPORTED_MODELS, "phi3"])
    folder = str(
        save_tiny(
            "phi3", tmp_path / "phi3", hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1,
        )
    )  # fmt: skip
    config = BaseQuantizeConfig(bits=8, group_size=32, desc_act=False, magr=True)
    model = quantize(FusedGPTQ.from_pretrained(folder, config))
    report, out = model.quantize_config.magr_report, str(tmp_path / "out")
    assert [layer.name for layer in report.reduced] == [
        f"model.layers.{block}.{name}" for block in range(2) for (name,) in FusedGPTQ.inside_layer_modules
    ]
    assert len(report.layers) == len(report.reduced)
    model.save_quantized(out)
    read = FusedGPTQ.from_quantized(out, device="cpu", torch_dtype=torch.float32, disable_exllama=True)
    original = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    for layer in report.layers:
        module, expected = read.model.get_submodule(layer.name), original.get_submodule(layer.name).weight
        weight = module(torch.eye(module.infeatures)).T
        assert (weight - expected).norm() < 0.1 * expected.norm(), layer.name
    rows = calibration_rows(2)
    with torch.no_grad():
        torch.testing.assert_close(read(rows).logits, original(rows).logits, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("positional", "named", "home"),
    [
        ((), {}, None),
        ((), {"cache_examples_on_gpu": False}, torch.device("cpu")),
        ((8, False, True, False, False), {}, torch.device("cpu")),
    ],
    ids=["left out", "named", "by place"],
)
def test_hidden_states_are_kept_where_the_toolkit_keeps_its_own(
    positional, named, home, tiny, switched_on, monkeypatch
) -> None:
    """Those of the unquantized model, too."""
    homes, run = [], UndamagedChain.run

    def noting(self, number, args, kwargs, home=None) -> None:
        homes.append(home)
        run(self, number, args, kwargs, home)

    monkeypatch.setattr(UndamagedChain, "run", noting)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in calibration_rows()]
    load(tiny["llama"], bits=4, group_size=32, magr=True).quantize(rows, *positional, **named)
    assert set(homes) == {home}


def test_a_run_that_reduces_nothing_raises(tiny, switched_on) -> None:
    model = load(tiny["llama"], bits=3, magr=True)
    model.inside_layer_modules = [["a_name_that_no_layer_has"]]
    with pytest.raises(magr_gptq.NothingReducedError, match="0 of 0 layers"):
        quantize(model)
    assert adapter._run.get() is None


def test_the_toolkit_switches_tf32_off_once_when_it_is_imported() -> None:
    """So docs/scaling.md says that what a user sets after that holds."""
    program = """
import torch
allowed = lambda: torch.backends.cuda.matmul.allow_tf32
torch.backends.cuda.matmul.allow_tf32 = True
import auto_gptq
seen = [allowed()]
torch.backends.cuda.matmul.allow_tf32 = True
import magr_gptq
with magr_gptq.enabled("auto-gptq"):
    seen.append(allowed())
print(*seen)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "True"]
