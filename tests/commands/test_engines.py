"""Every engine of this environment: the same options, card, record and guards from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from bad_models import save_mixture, save_tiny
from command_line import PROSE, call
from safetensors.torch import load_file
from tiny import save_tiny_model

from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.toolkits import installed

pytestmark = pytest.mark.long

HERE = [name for name, engine in ENGINES.items() if engine.toolkit in installed()]
SMALL = ("--group-size", 32, "--seqlen", 64, "--samples", 8)
# of logits, by kernels in float32
SMALL_DIFFERENCE = 1e-3


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("model")))


def quantize(model: object, engine: str, *more: object) -> tuple[int, str]:
    given = ("--engine", engine, "--calibration", "prose.txt", "--out", "out", "--no-verify", *SMALL, *more)
    return call("quantize", model, *given)


@pytest.mark.parametrize("engine", HERE)
def test_every_engine_saves_what_its_loaders_read(engine: str, model: str, worker: Worker) -> None:
    code, output = quantize(model, engine, "--bits", 3, "--verify")
    assert code == 0, output
    out = Path("out").absolute()
    assert "7 layers: 7 reduced" in output
    assert {path.name for path in Path().iterdir()} == {"prose.txt", "out"}
    record = json.loads((out / "magr.json").read_text())
    totals = record["totals"]
    assert (totals["layers"], totals["outcomes"], totals["reasons"]) == (7, {"reduced": 7}, [])
    assert set(ENGINES[engine].distributions) < set(record["versions"])
    assert yaml.safe_load((out / "README.md").read_text().split("---")[1])["bits"] == 3
    # the calibration text is nobody's business
    assert len((out / "config.json").read_text()) < 4000
    for found in record["loaded"]:
        assert found["missing"] == [], found
        assert found["difference"] < SMALL_DIFFERENCE, found
    assert [found["loader"] for found in record["loaded"]] == list(ENGINES[engine].loaders)


@pytest.mark.parametrize("engine", HERE)
def test_every_engine_takes_the_same_options(engine: str, model: str, worker: Worker) -> None:
    code, output = quantize(model, engine, "--bits", 3, "--no-sym", "--rounding", "nearest", "--alpha", 0.001)
    assert code == 0, output
    job = json.loads(Path("out", "magr.json").read_text())["job"]
    assert (job["engine"], job["sym"], job["rounding"], job["magr"]) == (
        engine, False, "nearest", {"alpha": 0.001},
    )  # fmt: skip


@pytest.mark.parametrize("engine", HERE)
def test_every_engine_quantizes_whole_rows_without_magr(engine: str, model: str, worker: Worker) -> None:
    code, output = quantize(model, engine, "--no-magr", "--bits", 8, "--group-size", -1)
    assert code == 0, output
    assert "7 layers: 7 plain" in output
    assert json.loads(Path("out", "magr.json").read_text())["summary"] is None


@pytest.mark.parametrize("engine", [name for name in HERE if not ENGINES[name].plain_nearest])
def test_nearest_without_magr_is_refused_by_name(engine: str, model: str) -> None:
    code, output = quantize(model, engine, "--no-magr", "--rounding", "nearest")
    assert code == 2
    assert f"{engine} cannot round to nearest without MagR; use --engine gptqmodel" in output
    assert {path.name for path in Path().iterdir()} == {"prose.txt"}


@pytest.mark.parametrize("engine", [name for name in HERE if not ENGINES[name].plain_nearest])
def test_compare_refuses_what_an_engine_cannot_do(engine: str, model: str) -> None:
    pytest.importorskip("matplotlib")
    code, output = call(
        "compare", model, "--engine", engine, "--methods", "rtn,magr", "--calibration", "prose.txt",
        "--evaluate", "prose.txt", "--out", "compared",
    )  # fmt: skip
    assert code == 2
    assert f"{engine} cannot round to nearest without MagR" in output
    assert {path.name for path in Path().iterdir()} == {"prose.txt"}


@pytest.mark.parametrize("engine", HERE)
def test_an_order_of_columns_is_saved_or_refused(engine: str, model: str, worker: Worker) -> None:
    code, output = quantize(model, engine, "--desc-act")
    if not ENGINES[engine].desc_act:
        assert code == 2
        assert f"--desc-act: {engine} saves no order" in output
        return
    assert code == 0, output
    (file,) = Path("out").glob("*.safetensors")
    orders = [tensor for name, tensor in load_file(file).items() if name.endswith("g_idx")]
    assert any((order.diff() < 0).any() for order in orders)


@pytest.mark.skipif("gptqmodel" not in HERE, reason="needs GPTQModel")
@pytest.mark.parametrize("family", ["gemma3_text", "gemma4_text"])
def test_a_config_that_a_toolkit_spoils_is_found_before_the_work(
    family: str, tmp_path, worker: Worker
) -> None:
    # GPTQModel 7.6 adds flat rope keys to these configs
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    gemma = save_tiny(family, tmp_path / "gemma", **sizes, num_key_value_heads=1, head_dim=32)
    code, output = quantize(gemma, "gptqmodel")
    assert code == 2
    assert "TextConfig of this model cannot be saved" in output
    assert "with gptqmodel the Gemma" in output
    assert not Path("out").exists()


@pytest.mark.parametrize("engine", HERE)
def test_scales_are_positive_where_that_is_asked_for(engine: str, model: str, worker: Worker) -> None:
    assert quantize(model, engine, "--bits", 2)[0] == 0
    assert any((scale < 0).any() for scale in scales("out"))
    assert quantize(model, engine, "--bits", 2, "--positive-scales", "--out", "positive")[0] == 0
    assert all((scale > 0).all() for scale in scales("positive"))


def scales(folder: str) -> list[torch.Tensor]:
    (file,) = Path(folder).glob("*.safetensors")
    saved = load_file(file)
    return [saved[name] for name in saved if name.endswith((".scales", ".weight_scale"))]


@pytest.mark.skipif("optimum" not in HERE, reason="needs optimum")
def test_experts_that_stay_in_16_bits_are_in_the_report(tmp_path, worker: Worker) -> None:
    code, output = quantize(save_mixture(tmp_path / "mixture"), "transformers")
    assert code == 0, output
    assert "2 not quantized: the toolkit leaves fused experts in 16 bits" in output
    (left, _) = (
        layer for layer in json.loads(Path("out", "magr.json").read_text())["layers"] if layer["bits"] == 16
    )
    assert left["name"].endswith("experts.gate_up_proj")


@pytest.mark.skipif("llm-compressor" not in HERE, reason="needs llm-compressor")
def test_llm_compressor_refuses_a_short_last_group(tmp_path, worker: Worker) -> None:
    code, output = quantize(save_tiny_model("tail", tmp_path / "tail"), "llm-compressor", "--group-size", 128)
    assert code == 2
    assert "--group-size 128: model.layers.0.self_attn.q_proj has 192 columns" in output
    assert not Path("out").exists()


@pytest.mark.parametrize("engine", HERE)
def test_compare_takes_every_engine(engine: str, model: str) -> None:
    pytest.importorskip("matplotlib")
    code, output = call(
        "compare", model, "--engine", engine, "--methods", "magr", "--bits", "3",
        "--group-size", "32", "--samples", 8, "--seqlen", 64, "--limit", 4, "--calibration", "prose.txt",
        "--evaluate", "prose.txt", "--out", "compared", "--positive-scales",
    )  # fmt: skip
    assert code == 0, output
    assert "--positive-scales" in Path("compared", "report.html").read_text()
    record = json.loads(Path("compared", "cells", "magr-w3-g32-prose-seed0.json").read_text())
    assert record["scores"]["prose"]["divergence"] > 0
    assert (record["settings"]["engine"], record["settings"]["positive_scales"]) == (engine, True)
    assert set(ENGINES[engine].distributions) < set(record["versions"])


@pytest.mark.skipif("auto-gptq" not in HERE, reason="needs AutoGPTQ")
def test_autogptqs_own_loader_reads_its_tied_models(tmp_path, worker: Worker) -> None:
    """The head of other engines' tied models it leaves at zero; see test_card.py."""
    model = save_tiny(
        "llama", tmp_path / "model", hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    code, output = quantize(model, "auto-gptq", "--bits", 4, "--verify")
    assert code == 0, output
    (found,) = json.loads(Path("out", "magr.json").read_text())["loaded"]
    assert (found["loader"], found["missing"]) == ("auto-gptq", [])
    assert found["difference"] < SMALL_DIFFERENCE
