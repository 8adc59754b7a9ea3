"""`magr` through transformers' GPTQConfig and optimum's GPTQQuantizer: real runs, files and loaders."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_forked
from places import HELPERS
from tiny import save_tiny_model

import magr_gptq

pytest.importorskip("gptqmodel")

from gptqmodel.quantization.gptq import GPTQ
from optimum.gptq import GPTQQuantizer
from optimum_runs import QUANTIZE, TEXTS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

from magr_gptq.app.quantizing import by_optimum
from magr_gptq.app.quantizing.job import Job
from magr_gptq.app.text import random_windows
from magr_gptq.toolkits.optimum import chain

pytestmark = pytest.mark.long

LAYERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
SETTINGS = {
    "sym": {"bits": 3, "group_size": 32},
    "rows": {"bits": 2, "group_size": -1, "act_group_aware": False},
    "asym": {"bits": 2, "group_size": 32, "sym": False},
    "desc_act": {"bits": 4, "group_size": 32, "desc_act": True, "act_group_aware": False},
}
BOTH_CLASSES = pytest.mark.parametrize("settings_class", [GPTQConfig, GPTQQuantizer])


@pytest.fixture
def switched_on():
    with magr_gptq.enabled("optimum"):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("optimum")
    save_tiny_model("llama", folder / "model")
    return folder


@pytest.fixture(scope="module")
def runs(root: Path) -> dict[tuple[str, str], dict]:
    """Every setting on both roads with magr; a process that never imports magr_gptq reads all back."""
    found = {}
    with magr_gptq.enabled("optimum"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        rounded: dict[str, torch.Tensor] = {}
        patch.setattr(GPTQ, "quantize", _recording(GPTQ.quantize, rounded))
        for road, quantize in QUANTIZE.items():
            for name, settings in SETTINGS.items():
                rounded.clear()
                out = root / f"{road}-{name}"
                model = quantize(str(root / "model"), out, magr=True, **settings)
                found[road, name] = {"rounded": dict(rounded), "report": model.quantize_config.magr_report}
    saved = [str(path) for path in root.iterdir() if path.name != "model"]
    script = str(HELPERS / "dump_optimum.py")
    done = run_forked(script, root / "model", root / "vanilla", *saved, cwd=root)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return found


def _recording(original, rounded: dict):
    def quantize(self, blocksize=128):
        result = original(self, blocksize)
        rounded[self.name] = result[0].clone()
        return result

    return quantize


def read(folder: Path, loader: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "dequantized.pt")[loader]


def is_same(weights: dict[str, torch.Tensor], rounded: dict[str, torch.Tensor]) -> bool:
    """Scales are stored in float16, 11 bits; a wrong code is off by at least 1/15 of the range."""
    assert set(weights) == set(rounded)
    return all(
        torch.allclose(weights[name].float(), rounded[name].float(), rtol=2e-3, atol=1e-6) for name in rounded
    )


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("road", QUANTIZE)
def test_every_layer_is_reduced_and_named(road: str, name: str, runs) -> None:
    report = runs[road, name]["report"]
    assert [layer.name for layer in report.reduced] == [f"model.layers.0.{layer}" for layer in LAYERS]
    assert not report.skipped
    for layer in report.layers:
        assert (layer.bits, layer.group_size) == (SETTINGS[name]["bits"], SETTINGS[name]["group_size"])
        assert layer.largest_after < layer.largest_before


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("road", "suffix", "loader"),
    [
        ("transformers", "", "transformers"),
        ("transformers", "", "gptqmodel"),
        ("optimum", "", "optimum"),
        ("optimum", "", "gptqmodel"),
        ("optimum", "-pretrained", "transformers"),
        ("optimum", "-pretrained", "gptqmodel"),
    ],
)
def test_vanilla_loaders_read_the_very_weights_that_were_rounded(
    road: str, suffix: str, loader: str, name: str, runs, root
) -> None:
    weights = read(root / f"{road}-{name}{suffix}", loader)
    assert is_same(weights, runs[road, name]["rounded"])


@pytest.mark.parametrize("name", SETTINGS)
def test_optimums_save_names_the_wrong_format_for_symmetric_grids(name: str, runs, root) -> None:
    """optimum 2.3 by itself: v1 zero points, and config.json, which transformers reads, says v2."""
    folder, symmetric = root / f"optimum-{name}", SETTINGS[name].get("sym", True)
    format_in = {
        "config.json": json.loads((folder / "config.json").read_text())["quantization_config"]["format"],
        "quantize_config.json": json.loads((folder / "quantize_config.json").read_text())["format"],
    }
    assert format_in == {
        "config.json": "gptq_v2",
        "quantize_config.json": "gptq" if symmetric else "gptq_v2",
    }
    weights = read(folder, "transformers")
    assert is_same(weights, runs["optimum", name]["rounded"]) is not symmetric


@pytest.mark.parametrize(
    ("block", "home"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), pytest.param("meta", "cpu", id="kept away")]
)
def test_hidden_states_wait_where_the_first_block_lies(block: str, home: str, monkeypatch) -> None:
    monkeypatch.setattr(chain, "get_device", lambda _: torch.device(block))
    assert chain._home(torch.nn.Linear(1, 1)) == torch.device(home)


def test_windows_of_the_command_leave_engines_nothing_to_pad_or_cut() -> None:
    """optimum counts padding as tokens, and llm-compressor cuts a batch to its shortest row."""
    windows = random_windows(range(1000), 7, 50, seed=0, beginning=[1, 2])
    assert {len(window) for window in windows} == {50}
    batches = by_optimum.settings(Job("model", "out", "text"), windows, 3)["dataset"]
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 1]
    assert all(mask == [1] * 50 for batch in batches for mask in batch["attention_mask"])


@pytest.mark.parametrize("settings", [{"dataset": [[1, 2]]}, SimpleNamespace(dataset=[[1, 2]])], ids=str)
def test_the_command_does_not_save_the_calibration_set(settings) -> None:
    """transformers writes it into config.json whole."""
    saved = []
    model = SimpleNamespace(
        config=SimpleNamespace(quantization_config=settings),
        save_pretrained=lambda out: saved.append((out, copy.deepcopy(settings))),
    )
    by_optimum.save(model, "out")
    assert saved in ([("out", {"dataset": None})], [("out", SimpleNamespace(dataset=None))])


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.name != "dequantized.pt"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("off", [{}, {"magr": False}], ids=["left out", "False"])
@pytest.mark.parametrize("road", QUANTIZE)
def test_off_gives_the_files_of_a_process_without_magr(
    road: str, off: dict, runs, root, tmp_path, switched_on
) -> None:
    QUANTIZE[road](str(root / "model"), tmp_path / road, bits=3, group_size=32, **off)
    for folder in (road, f"{road}-pretrained"):
        if (tmp_path / folder).exists():
            assert digests(tmp_path / folder) == digests(root / "vanilla" / folder)


@pytest.mark.parametrize("road", QUANTIZE)
def test_on_changes_the_tensors_but_no_shape(road: str, runs, root) -> None:
    with_magr = load_file(root / f"{road}-sym" / "model.safetensors")
    plain = load_file(root / "vanilla" / road / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in with_magr.items()} == {
        n: (t.shape, t.dtype) for n, t in plain.items()
    }
    for layer in LAYERS:
        name = f"model.layers.0.{layer}.qweight"
        assert not torch.equal(with_magr[name], plain[name])


@pytest.mark.parametrize("road", QUANTIZE)
def test_setting_is_saved_under_meta_and_comes_back(road: str, runs, root, switched_on) -> None:
    folder = root / f"{road}-sym"
    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert written["meta"]["magr"] == {"preset": "default"}
    assert "magr" not in written
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    assert loaded.config.quantization_config.magr == magr_gptq.MagRConfig()
    if road == "optimum":
        own = json.loads((folder / "quantize_config.json").read_text())
        assert own["meta"]["magr"] == {"preset": "default"}
        assert GPTQQuantizer.from_dict(own).magr == magr_gptq.MagRConfig()


def test_a_checkpoint_is_loaded_whatever_the_config_says(runs, root, switched_on) -> None:
    """transformers takes the saved settings, and warns that the others are ignored."""
    config = GPTQConfig(bits=3, magr={"beta": 0.5})
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        loaded = AutoModelForCausalLM.from_pretrained(
            root / "transformers-sym", quantization_config=config, dtype=torch.float16
        )
    assert loaded.config.quantization_config.magr == magr_gptq.MagRConfig()


@BOTH_CLASSES
def test_meta_carries_the_keyword(settings_class, switched_on) -> None:
    mine = {"author": "me"}
    settings = settings_class(bits=3, group_size=32, meta=mine, magr={"beta": 0.9})
    assert mine == {"author": "me"}
    assert settings.magr == magr_gptq.MagRConfig(beta=0.9)
    assert settings.meta == {"author": "me", "magr": {"preset": "default", "beta": 0.9}}
    again = settings_class.from_dict(settings.to_dict())
    assert again.magr == settings.magr


@BOTH_CLASSES
def test_the_keyword_overrides_meta(settings_class, switched_on) -> None:
    meta = {"author": "me", "magr": {"beta": 0.9}}
    assert settings_class(bits=3, meta=meta).magr == magr_gptq.MagRConfig(beta=0.9)
    assert settings_class(bits=3, meta=meta, magr=True).magr == magr_gptq.MagRConfig()
    off = settings_class(bits=3, meta=meta, magr=False)
    assert off.magr is None
    assert off.meta == {"author": "me"}


@BOTH_CLASSES
def test_off_leaves_meta_alone(settings_class, switched_on) -> None:
    assert settings_class(bits=3).meta is None
    assert settings_class(bits=3, magr=False).meta is None


@BOTH_CLASSES
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("yes", TypeError, "magr='yes' is a str"),
        ({"gamma": 1}, ValueError, "unknown setting 'gamma'"),
        ({"strength": 1.0, "preset": "paper"}, ValueError, "strength=1.0 belongs to the derived"),
    ],
)
def test_bad_values_are_refused_at_construction(settings_class, bad, error, message, switched_on) -> None:
    with pytest.raises(error, match=message):
        settings_class(bits=3, magr=bad)
    with pytest.raises(error, match=message):
        settings_class(bits=3, meta={"magr": bad})


@BOTH_CLASSES
def test_magr_is_unknown_before_and_after(settings_class) -> None:
    for _ in range(2):
        assert not hasattr(settings_class(bits=3, magr=True), "magr")
        assert "magr" not in inspect.signature(settings_class).parameters
        with magr_gptq.enabled("optimum"):
            assert "magr" in inspect.signature(settings_class).parameters


def test_quantize_config_of_optimum_has_the_setting(switched_on) -> None:
    config = GPTQQuantizer(bits=3, group_size=32, magr={"beta": 0.9}).quantizeConfig
    assert config.magr == magr_gptq.MagRConfig(beta=0.9)


def test_a_quantizer_made_before_enable_reduces_too(root, tmp_path) -> None:
    """Else the files would say that MagR was on where it was not."""
    quantizer = GPTQQuantizer(
        bits=3, group_size=32, dataset=TEXTS, meta={"magr": {"beta": 0.9, "search": False}}
    )
    model = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float16)
    with magr_gptq.enabled("optimum"):
        quantized = quantizer.quantize_model(model, str(root / "model"))
    assert {layer.beta for layer in quantized.quantize_config.magr_report.reduced} == {0.9}


def test_awq_refuses_magr(switched_on) -> None:
    with pytest.raises(ValueError, match="magr=True applies to GPTQConfig"):
        AwqConfig(bits=4, magr=True)
    assert AwqConfig(bits=4, magr=False).meta is None


@pytest.mark.parametrize("road", QUANTIZE)
def test_a_run_that_reduces_nothing_raises(road: str, root, tmp_path, switched_on, monkeypatch) -> None:
    """With the toolkit's fallback for every layer, as where no calibration token arrives."""
    original = GPTQ.__init__

    def starved(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.fallback.threshold = 10**9

    monkeypatch.setattr(GPTQ, "__init__", starved)
    with pytest.raises(magr_gptq.NothingReducedError, match="0 of 7 layers reduced; skipped: too few"):
        QUANTIZE[road](str(root / "model"), tmp_path / "out", bits=3, group_size=32, magr=True)
