"""Whether a checkpoint loads: formats read by hand, loaders that leave something out, what the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import PROSE, quantize, shared
from tiny import save_tiny_model

from magr_gptq.app.cli import quantize as quantize_module
from magr_gptq.app.quantizing import verifying
from magr_gptq.app.quantizing.card import model_card
from magr_gptq.app.quantizing.engines import ENGINES
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.verifying import Loaded, require_loader, try_loaders
from magr_gptq.toolkits import installed
from magr_score import packed
from magr_score import verify as verify_module
from magr_score.verify import BEYOND, difference, verify

pytestmark = pytest.mark.long

ENGINE = installed()[0]
SMALL = ("--bits", 3, "--group-size", 32, "--seqlen", 64, "--samples", 8)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def checkpoint(quantizing_process, tmp_path_factory) -> str:
    """Made by the toolkit of this environment, asymmetric, so that zero points differ."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(quantize_module, "Worker", shared(quantizing_process))
        Path("prose.txt").write_text(PROSE)
        code, output = quantize(save_tiny_model("llama", folder / "model"), "--no-sym", *SMALL)
    assert code == 0, output
    return str(folder / "out")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_codes_are_read_from_the_stream_of_bits(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 64), generator=torch.Generator().manual_seed(bits))
    words = []
    for row in codes.tolist():
        stream = sum(code << bits * place for place, code in enumerate(row))
        found = [(stream >> 32 * word) & (2**32 - 1) for word in range(2 * bits)]
        words.append([word - 2**32 if word >= 2**31 else word for word in found])
    assert torch.equal(packed.unpacked(torch.tensor(words, dtype=torch.int32), bits), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_of_zero_gives_back_what_it_borrowed(bits: int) -> None:
    codes = [0, 1, 0, *(place % 2**bits for place in range(32 // bits - 3))]
    word = sum(code << bits * place for place, code in enumerate(codes))
    less = (word - sum(1 << place for place in range(0, 32, bits))) % 2**32
    words = torch.tensor([[less - 2**32 if less >= 2**31 else less]], dtype=torch.int32)
    assert packed.one_more(words, bits).tolist() == [codes]


def test_a_loader_that_reads_all_predicts_what_the_file_says(checkpoint: str) -> None:
    found = verify({"checkpoint": checkpoint, "engine": ENGINE, "predict": True})
    assert found["missing"] == []
    assert found["strange"] == 0
    assert found["difference"] < 1e-3


def test_another_reading_of_the_zero_points_is_seen(checkpoint: str, monkeypatch) -> None:
    right = packed.gptq_weight
    monkeypatch.setattr(
        packed, "gptq_weight", lambda part, config: right(part, {**config, "checkpoint_format": "gptq_v2"})
    )
    found = verify({"checkpoint": checkpoint, "engine": ENGINE, "predict": True})
    assert found["difference"] > verifying.LARGEST_DIFFERENCE


def test_a_tensor_from_nowhere_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
    assert verify_module._without_source(model, {"0.weight"}) == {"1.weight"}
    model[1].weight = model[0].weight
    assert verify_module._without_source(model, {"0.weight"}) == set()


def test_predictions_that_are_not_finite_are_beyond_any_limit() -> None:
    ones = torch.ones(3)
    assert difference(ones, 1.1 * ones) == pytest.approx(0.1)
    assert difference(ones, ones * float("nan")) == difference(0 * ones, ones) == BEYOND


RIGHT = Loaded("gptqmodel", difference=1e-4)
WRONG = {
    "missing": (
        Loaded("gptqmodel", missing=("lm_head.weight", "b")),
        "2 tensors are not the file's, such as lm",
    ),
    "predictions": (
        Loaded("gptqmodel", difference=0.6),
        "its logits are 60% off what the file's weights give",
    ),
    "error": (Loaded("gptqmodel", error="KeyError: 'x'"), "it failed: KeyError: 'x'"),
}


@pytest.mark.parametrize(("loaded", "words"), WRONG.values(), ids=WRONG)
def test_a_loader_that_fails_is_no_promise_of_the_card(loaded: Loaded, words: str) -> None:
    outcome = Outcome(
        1.0, 256, {}, totals={"layers": 0, "outcomes": {}, "reasons": []},
        loaded=[{"loader": "transformers"}, vars(loaded)],
    )  # fmt: skip
    card = model_card(Job("some/Model", "/home/me/out", "prose.txt"), outcome)
    assert f"Do not load it by gptqmodel: {words}" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "GPTQModel.load" not in card
    require_loader([RIGHT, loaded], "out")
    with pytest.raises(verifying.EngineError, match="gptqmodel does not load what was saved"):
        require_loader([loaded, RIGHT], "out")


def test_names_alone_are_compared_where_a_checkpoint_is_large(checkpoint: str, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        verifying, "verify", lambda _, **how: asked.append(how["predict"]) or {"missing": [], "strange": 0}
    )
    job = Job("model", checkpoint, "prose.txt", engine=ENGINE)
    for predict, limit in ((None, 2**30), (None, 1), (True, 1)):
        monkeypatch.setattr(verifying, "SMALL_BYTES", limit)
        try_loaders(job, predict, Path("log"), lambda _: None)
    loaders = len(ENGINES[ENGINE].loaders)
    assert asked == [True] * loaders + [False] * loaders + [True] * loaders
    assert try_loaders(job, False, Path("log"), lambda _: None) == []


def test_a_checkpoint_that_does_not_load_is_kept_and_the_command_fails(worker, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(verifying, "verify", lambda *_, **__: {"missing": ["lm_head.weight"]})
    code, output = quantize(save_tiny_model("llama", tmp_path / "model"), *SMALL, "--verify")
    assert code == 1
    assert f"{ENGINE} does not load what was saved: 1 tensors are not the file's, such as lm_head" in output
    assert json.loads(Path("out", "magr.json").read_text())["loaded"][0]["missing"] == ["lm_head.weight"]


def test_code_of_a_model_is_not_run_to_verify_it(tmp_path) -> None:
    code, output = quantize(save_tiny_model("llama", tmp_path / "model"), "--verify", "--trust-remote-code")
    assert code == 2
    assert "--verify runs no code of a model" in output
