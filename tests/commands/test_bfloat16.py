"""A bfloat16 model whose residual stream is beyond float16, as Gemma 3's is: it stays in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bad_models import save_tiny
from command_line import PROSE, call
from safetensors.torch import load_file

from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.verifying import Loaded

pytestmark = [pytest.mark.long, pytest.mark.environments("modern")]

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
# embeddings of 0.02 become a stream near 100,000, and float16 ends at 65,504
LOUD = 5e6


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    def prepare(network) -> None:
        network.model.embed_tokens.weight.data.mul_(LOUD)

    return save_tiny("llama", tmp_path_factory.mktemp("loud") / "model", prepare, dtype="bfloat16", **SIZES)


@pytest.mark.parametrize("engine", ["gptqmodel", "optimum", "llm-compressor"])
def test_a_stream_beyond_float16_is_quantized_saved_and_loaded(
    engine: str, model, worker, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)
    code, output = call(
        "quantize", model, "--engine", engine, "--calibration", "prose.txt", "--out", "out",
        "--group-size", 32, "--seqlen", 64, "--samples", 8, "--verify",
    )  # fmt: skip
    assert code == 0, output
    loaded = [Loaded(**found) for found in json.loads(Path("out", "magr.json").read_text())["loaded"]]
    assert [found.loader for found in loaded if found.right] == list(ENGINES[engine].loaders)
    config = json.loads(Path("out", "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    embedding = load_file("out/model.safetensors")["model.embed_tokens.weight"]
    assert embedding.dtype == torch.bfloat16
    assert float(embedding.abs().max()) > torch.finfo(torch.float16).max
