"""In which dtype and where models are loaded to be scored; GPUs are pretended."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bad_models import save_tiny
from tiny import save_tiny_model

from magr_score import divergence, loaders, perplexity

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        dtype: save_tiny("llama", root / dtype, dtype=dtype, **SIZES)
        for dtype in ("float16", "bfloat16", "float32")
    }


def test_on_a_gpu_models_keep_bfloat16_and_else_take_float16(folders: dict[str, Path]) -> None:
    found = {name: loaders.dtype_on("cuda:0", str(folder)) for name, folder in folders.items()}
    assert found == {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float16}
    assert {loaders.dtype_on("cpu", str(folder)) for folder in folders.values()} == {torch.float32}


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What models are loaded with, where there are two GPUs."""
    from transformers import AutoModelForCausalLM

    calls: list[dict] = []

    def load(folder, **how):
        calls.append(how)
        return SimpleNamespace(eval=lambda: folder)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    for module in (divergence, perplexity):
        monkeypatch.setattr(module, "device", lambda: "cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return calls


def test_original_and_checkpoint_are_compared_in_one_dtype_spread_over_devices(
    asked, folders, tmp_path, monkeypatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 5)
    monkeypatch.setattr(divergence, "compare", lambda *_: {})
    request = {"text": str(text), "seqlen": 60, "limit": 1, "engine": "transformers"}
    # a checkpoint of a bfloat16 model that says float16
    list(
        divergence.scores(
            {"original": str(folders["bfloat16"]), "models": [str(folders["float16"])], **request}
        )
    )
    assert asked == [{"torch_dtype": torch.bfloat16, "device_map": "auto"}] * 2


@pytest.mark.environments("modern")
@pytest.mark.parametrize(("gpus", "where"), [(1, {"device": "cuda:0"}), (2, {"device_map": "auto"})])
def test_gptqmodel_takes_all_gpus_where_there_are_several(monkeypatch, gpus: int, where: dict) -> None:
    import gptqmodel

    calls = []

    def load(_folder, **how):
        calls.append(how)
        return SimpleNamespace(model=torch.nn.Identity())

    monkeypatch.setattr(gptqmodel.GPTQModel, "load", load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    loaders.load_gptqmodel("folder", "cuda:0", torch.bfloat16)
    assert calls == [{"dtype": torch.bfloat16, **where}]


def test_a_model_that_is_spread_over_places_gets_the_same_score(tmp_path) -> None:
    from accelerate import dispatch_model
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model("two-blocks", tmp_path / "model")
    rows = torch.randint(1, 257, (3, 32), generator=torch.Generator().manual_seed(0))
    whole = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    wanted = perplexity.perplexity(whole, rows)
    # where memory ends, accelerate keeps the rest on a disk
    spread = dispatch_model(
        AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval(),
        {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
         "model.layers.1": "disk",
         "model.norm": "disk", "lm_head": "disk"},
        main_device="cpu", offload_dir=str(tmp_path / "offload"),
    )  # fmt: skip
    assert json.dumps(perplexity.perplexity(spread, rows)) == json.dumps(wanted)
    assert divergence.compare(whole, spread, rows) == {"perplexity": pytest.approx(wanted), "divergence": 0}
