"""`quantize --for`: what is chosen for a runtime, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import PROSE, call
from tiny import save_tiny_model

from magr_gptq.app.quantizing import runtimes
from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.runtimes import RUNTIMES, Asked, choose_road
from magr_gptq.errors import InputError
from magr_gptq.toolkits import TOOLKITS, installed


@pytest.fixture
def everywhere(monkeypatch) -> None:
    """Every toolkit at hand."""
    monkeypatch.setattr(runtimes, "installed", lambda: tuple(TOOLKITS))


def asked(engine=None, bits=4, group_size=128, sym=True, desc_act=False) -> Asked:
    return Asked(engine, bits, group_size, sym, desc_act)


CHOSEN = {
    "vllm at 4 bits": ("vllm", {}, "gptqmodel"),
    "vllm at 3 bits": ("vllm", {"bits": 3}, "llm-compressor"),
    "vllm at 2 bits": ("vllm", {"bits": 2}, "llm-compressor"),
    "vllm, asymmetric": ("vllm", {"sym": False}, "llm-compressor"),
    "an engine that is given": ("transformers", {"engine": "optimum", "bits": 2}, "optimum"),
    "desc_act": ("transformers", {"desc_act": True}, "gptqmodel"),
}


@pytest.mark.parametrize(("runtime", "options", "engine"), CHOSEN.values(), ids=CHOSEN)
def test_the_engine_follows_from_the_runtime(everywhere, runtime: str, options: dict, engine: str) -> None:
    assert choose_road(runtime, asked(**options)).engine == engine


def test_of_several_roads_an_installed_one_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(runtimes, "installed", lambda: ("llm-compressor",))
    assert choose_road("vllm", asked()).engine == "llm-compressor"


REFUSED = {
    "unknown": ("tgi", {}, "--for tgi: the runtimes are transformers, gptqmodel"),
    "bits": ("openvino", {"bits": 3}, "does not load --bits 3; it loads 4 bits by gptqmodel"),
    "symmetry": ("onnxruntime", {"sym": False}, "does not load --no-sym; it loads 2, 4, 8 bits"),
    "order": ("vllm", {"desc_act": True}, "does not load --desc-act; it loads 4, 8 bits by gptqmodel"),
    "groups": ("onnxruntime", {"group_size": 96}, "does not load --group-size 96"),
    "whole rows": ("onnxruntime", {"group_size": -1}, "does not load --group-size -1"),
    "engine": ("vllm", {"engine": "auto-gptq"}, "does not load --engine auto-gptq"),
    "gptq_v2": ("onnxruntime", {"engine": "transformers"}, "does not load --engine transformers; it loads 2"),
    "a pair": ("openvino", {"bits": 2, "desc_act": True}, "does not load --bits 2 with --desc-act"),
    "no road": ("mlx-lm", {}, "refuses g_idx, which every GPTQ file has; try transformers"),
}


@pytest.mark.parametrize(("runtime", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_runtime_does_not_load_is_refused_by_name(everywhere, runtime, options, message) -> None:
    with pytest.raises(InputError) as error:
        choose_road(runtime, asked(**options))
    assert message in str(error.value)
    assert f"--for {runtime}" in str(error.value)


def test_every_road_names_an_engine_and_every_dead_end_a_remedy() -> None:
    for runtime in RUNTIMES.values():
        assert {road.engine for road in runtime.roads} <= set(ENGINES)
        assert bool(runtime.roads) != bool(runtime.remedy)


def test_files_in_gptq_v2_are_promised_to_none_but_their_own_readers() -> None:
    """transformers and optimum save zero points as they are, which readers of v1 take for one less."""
    for name, runtime in RUNTIMES.items():
        engines = {road.engine for road in runtime.roads}
        assert name in ("transformers", "gptqmodel") or not engines & {"transformers", "optimum"}


HERE = next(name for name in ENGINES if name in installed())
REFUSED_AT_ONCE = {
    "bits": (("--for", "openvino", "--bits", 3), "--for openvino: it does not load --bits 3"),
    "an unknown runtime": (("--for", "tgi"), "--for tgi: the runtimes are transformers, gptqmodel"),
    "a runtime that reads none": (("--for", "mlx-lm"), "--for mlx-lm: it refuses g_idx"),
    "another engine": (
        ("--for", "auto-gptq", "--engine", "gptqmodel"), "does not load --engine gptqmodel; it loads 2, 3",
    ),
    "an order": (("--for", "vllm", "--desc-act"), "--for vllm: it does not load --desc-act"),
    "a width beside an average": (
        ("--for", "vllm", "--bits", 4, "--avg-bits", 3), "--bits and --avg-bits each say what bits",
    ),
    "a runtime of one width": (("--for", "openvino", "--avg-bits", 3), "layers of several widths load there"),
    "code to verify": (("--engine", HERE, "--verify", "--trust-remote-code"), "--verify runs no code"),
    "signs without MagR": (
        ("--engine", HERE, "--positive-scales", "--no-magr"), "--positive-scales would set it",
    ),
    "an unknown engine": (("--engine", "awq"), "--engine 'awq': the engines are gptqmodel, auto-gptq"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSED_AT_ONCE.values(), ids=REFUSED_AT_ONCE)
def test_what_cannot_be_is_refused_by_name_and_leaves_nothing(
    everywhere, given: tuple, message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)
    model = save_tiny_model("llama", tmp_path / "model")
    code, output = call("quantize", model, "--calibration", "prose.txt", "--out", "out", *given)
    assert code == 2
    assert message in output
    assert {path.name for path in Path().iterdir()} == {"prose.txt", "model"}


def test_doctor_lists_every_runtime() -> None:
    code, output = call("doctor")
    assert code == 0
    for name, runtime in RUNTIMES.items():
        assert f"  {name}: " in output
        assert all(str(road) in output for road in runtime.roads)


@pytest.mark.long
@pytest.mark.skipif("gptqmodel" not in installed(), reason="needs GPTQModel")
def test_a_reader_of_unsigned_scales_gets_positive_ones(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)
    code, output = call(
        "quantize", save_tiny_model("llama", tmp_path / "model"), "--calibration", "prose.txt",
        "--out", "out", "--for", "vllm-int8", "--no-verify", "--group-size", 32, "--seqlen", 64,
        "--samples", 8,
    )  # fmt: skip
    assert code == 0, output
    assert "For vllm-int8: 4 bits by gptqmodel, positive scales" in output
    record = json.loads(Path("out", "magr.json").read_text())
    assert record["job"]["magr"] == {"mirror": False}
    assert record["job"]["runtime"] == "vllm-int8"
    assert "- Made for: vllm-int8" in Path("out", "README.md").read_text()
