"""The commands: what they refuse, and what they leave behind, with the toolkit of this environment."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from command_line import PROSE, call, quantize, shared
from forked import run_forked
from safetensors.torch import load_file
from tiny import save_tiny_model
from transformers import AutoTokenizer

from magr_gptq.app.cli import demo as demo_module
from magr_gptq.app.cli import doctor as doctor_module
from magr_gptq.app.cli import quantize as quantize_module
from magr_gptq.app.quantizing import child
from magr_gptq.app.quantizing.card import model_card
from magr_gptq.app.quantizing.engines import find_engine
from magr_gptq.app.quantizing.job import Job, Outcome
from magr_gptq.app.quantizing.worker import Worker
from magr_gptq.app.text import windows_in_words
from magr_gptq.toolkits import SeamError, installed
from magr_gptq.toolkits.report import RunReport
from magr_score.windows import spelled, tokenize

pytestmark = pytest.mark.long

ENGINE = installed()[0]
NEEDS_GPTQMODEL = pytest.mark.skipif("gptqmodel" not in installed(), reason="needs GPTQModel")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("model")))


REFUSED = {
    "no-magr and alpha": (["--no-magr", "--alpha", "0.1"], "--no-magr switches MagR off, and --alpha would"),
    "no-magr and preset": (["--no-magr", "--preset", "paper"], "and --preset would"),
    "no-magr and positive scales": (["--no-magr", "--positive-scales"], "and --positive-scales would"),
    "beta": (["--beta", "1.5"], "beta=1.5 must lie in (0, 1]"),
    "alpha": (["--alpha", "-1"], "alpha=-1.0 must be a finite number above 0"),
    "bits": (["--bits", "5"], "--bits 5"),
    "group": (["--group-size", "0"], "--group-size 0"),
    "samples": (["--samples", "0"], "'--samples'"),
    "engine": (["--engine", "awq"], "'awq'"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_named_before_any_work(options: list[str], message: str, model: str) -> None:
    code, output = quantize(model, *options)
    assert code == 2
    assert message in output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent/", "there is no model folder absent/"),
        ("./absent", "there is no model folder ./absent"),
        (".", "is not a model folder: it has no config.json"),
        ("prose.txt", "there is no model folder prose.txt"),
    ],
)
def test_a_missing_model_is_named(given: str, message: str) -> None:
    code, output = quantize(given)
    assert code == 2
    assert message in output


def test_a_used_output_folder_is_refused(model: str) -> None:
    Path("out").mkdir()
    Path("out", "precious").write_text("")
    assert quantize(model) == (2, f"Error: the output folder {Path('out').absolute()} is not empty; "
                                  "name another --out, or empty it first\n")  # fmt: skip
    assert "is a file, not a folder" in quantize(model, out="prose.txt")[1]


def test_an_absent_calibration_text_is_named(model: str) -> None:
    code, output = quantize(model, text="absent.txt")
    assert code == 2
    assert "there is no file absent.txt" in output


def test_a_model_without_tokenizer_is_named(model: str, worker: Worker) -> None:
    Path("bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("bare", name).write_bytes(Path(model, name).read_bytes())
    code, output = quantize("bare")
    assert code == 2
    assert "has no tokenizer to load" in output


def test_a_toolkit_of_another_environment_is_named(model: str) -> None:
    other = {"gptqmodel": "auto-gptq", "auto-gptq": "gptqmodel"}[installed()[0]]
    code, output = quantize(model, "--engine", other)
    assert code == 2
    assert f"{other} is not installed" in output


def test_a_worker_that_cannot_start_is_reported(model: str, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "nowhere")
    code, output = quantize(model)
    assert code == 1
    assert "ended with exit status 1" in output
    assert Path("out.quantize.log").read_text()


@pytest.mark.parametrize("switch", ["--magr", "--no-magr"])
def test_a_checkpoint_that_the_vanilla_toolkit_scores(switch: str, model: str, worker: Worker) -> None:
    options = ["--bits", 4, "--group-size", 32, "--seqlen", 64, "--samples", 8]
    code, output = quantize(model, switch, *options)
    assert code == 0, output
    out = Path("out").absolute()
    assert f"MB to {out}" in output
    outcome = "reduced" if switch == "--magr" else "plain"
    assert f"7 layers: 7 {outcome}" in output
    assert "Warning" not in output
    saved = json.loads((out / "quantize_config.json").read_text())
    assert ("magr" in {**saved, **saved.get("meta", {})}) == (switch == "--magr")
    record = json.loads((out / "magr.json").read_text())
    assert record["totals"] == {"layers": 7, "dropped_rows": 0, "outcomes": {outcome: 7}, "reasons": []}
    assert record["job"]["out"] == str(out)
    assert [layer["outcome"] for layer in record["layers"]] == [outcome] * 7
    assert record["warning"] is None
    assert {installed()[0], "magr-gptq", "torch", "transformers"} == set(record["versions"])
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["bits"] == 4
    # neither ./logs, nor a log, nor a hidden folder
    assert {path.name for path in Path().iterdir()} == {"prose.txt", "out"}
    if switch == "--magr":
        weights_are_those_that_the_file_describes(out)
        unquantized = perplexity(Path(model), "transformers")
        assert perplexity(out, installed()[0]) == pytest.approx(unquantized, rel=0.2)


@pytest.mark.parametrize("cut", ["tokenizer", "stream"])
def test_windows_are_whole_and_begin_as_the_tokenizer_begins_a_text(cut: str, worker: Worker) -> None:
    model = save_tiny_model("llama", Path("begins"), begins=True)
    options = ["--bits", 4, "--group-size", 32, "--seqlen", 64, "--samples", 5, "--cut", cut]
    code, output = quantize(model, *options)
    assert code == 0, output
    beginning = "<|endoftext|>" if cut == "tokenizer" else ""
    record = json.loads(Path("out", "magr.json").read_text())
    # padding would be counted, too
    assert [layer["tokens"] for layer in record["layers"]] == [5 * 64] * 7
    assert (record["beginning"], record["job"]["cut"]) == (beginning, cut)
    words = windows_in_words(cut, [beginning])
    assert words in output
    assert words in Path("out", "README.md").read_text()
    saved = AutoTokenizer.from_pretrained("out")
    assert spelled(saved, tokenize(saved, "", cut)[0]) == beginning


@pytest.mark.parametrize("cut", ["tokenizer", "stream"])
def test_an_engine_is_given_windows_as_the_job_has_them(cut: str, monkeypatch) -> None:
    seen = windows_are_kept_alone(monkeypatch)
    model = save_tiny_model("llama", Path("begins"), begins=True)
    job = Job(str(model), "out", "prose.txt", engine=ENGINE, samples=5, seqlen=16, cut=cut)
    child.perform(asdict(job), lambda *_, **__: None)
    assert [len(window) for window in seen] == [16] * 5
    # 0 is what the tokenizer puts before a text
    assert [window[0] == 0 for window in seen] == [cut == "tokenizer"] * 5
    assert not any(0 in window[1:] for window in seen)


def test_windows_that_repeat_a_short_text_are_told_once(model: str, monkeypatch, capfd) -> None:
    windows_are_kept_alone(monkeypatch)
    job = Job(model, str(Path("out").absolute()), "prose.txt", engine=ENGINE, samples=64, seqlen=64)
    outcome = Outcome(**child.perform(asdict(job), lambda *_, **__: None))
    assert outcome.overlap.startswith("The calibration windows overlap: of their 4,096 tokens ")
    # what a child writes there is the run's log
    assert capfd.readouterr().err.count(outcome.overlap) == 1
    quantize_module.show(job, outcome)
    assert " ".join(capfd.readouterr().out.split()).count(f"{outcome.overlap}.") == 1
    assert model_card(job, outcome).count(outcome.overlap) == 1
    enough = child.perform(asdict(replace(job, samples=8)), lambda *_, **__: None)
    assert enough["overlap"] is None


def windows_are_kept_alone(monkeypatch) -> list[list[int]]:
    """In place of quantizing them; they end up in the list."""
    seen: list[list[int]] = []

    def keep(_job, _config, windows, *_):
        seen.extend(windows)
        return 0.0, RunReport()

    found = find_engine(ENGINE)
    fake = SimpleNamespace(
        least_tokens=1, toolkit=found.toolkit, distributions=found.distributions, quantize=keep
    )
    monkeypatch.setattr(child, "ENGINES", {ENGINE: fake})
    return seen


def weights_are_those_that_the_file_describes(folder: Path) -> None:
    """What the toolkit's kernels compute with against a reading of the packed 4-bit format by hand."""
    request = {"checkpoint": str(folder), "engine": installed()[0], "out": str(folder / "weights.pt")}
    run_forked("magr_score", "weights", json.dumps(request)).check_returncode()
    found = torch.load(request["out"])
    Path(request["out"]).unlink()
    (file,) = folder.glob("*.safetensors")
    saved = load_file(file)
    shifts = torch.arange(0, 32, 4)
    packed = [name.removesuffix(".qweight") for name in saved if name.endswith(".qweight")]
    assert len(packed) == 7
    for name in packed:
        codes = (saved[f"{name}.qweight"][:, None] >> shifts[:, None]).flatten(0, 1) & 15
        # AutoGPTQ's format, which both write, stores zero points less one
        zeros = ((saved[f"{name}.qzeros"][..., None] >> shifts).flatten(1) & 15) + 1
        groups = torch.arange(len(codes)) // 32
        weight = saved[f"{name}.scales"].float()[groups] * (codes - zeros[groups])
        torch.testing.assert_close(found[name].float(), weight.T, rtol=1e-3, atol=0)


def perplexity(folder: Path, engine: str) -> float:
    done = run_forked("magr_score", "perplexity", folder, "prose.txt", "--engine", engine, "--seqlen", 64)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)["perplexity"]


@NEEDS_GPTQMODEL
def test_demo_compares_and_saves(model: str, worker: Worker, monkeypatch) -> None:
    monkeypatch.setattr(demo_module, "Worker", shared(worker))
    monkeypatch.setattr(demo_module, "BITS", (2,))
    monkeypatch.setattr(demo_module, "CALIBRATION_WINDOWS", 4)
    monkeypatch.setattr(demo_module, "SCORED_WINDOWS", 2)
    code, output = call("demo", "--model", model, "--out", "demo")
    assert code == 0, output
    rows = json.loads(Path("demo", "results.json").read_text())
    assert [(row["method"], row["bits"]) for row in rows] == [
        ("unquantized", 16),
        ("GPTQ", 2),
        ("GPTQ+MagR", 2),
    ]
    for row in rows:
        assert f"{row['perplexity']:.2f}" in output
    assert rows[1]["perplexity"] != rows[2]["perplexity"]
    assert {path.name for path in Path("demo").iterdir()} == {
        "demo.log", "results.json", "gptq-2bit", "gptq-magr-2bit",
    }  # fmt: skip


@NEEDS_GPTQMODEL
def test_demo_spares_files_that_are_not_its_own(model: str) -> None:
    Path("demo").mkdir()
    Path("demo", "precious").write_text("")
    code, output = call("demo", "--model", model, "--out", "demo")
    assert code == 2
    assert "holds other files" in output


def test_doctor_names_what_is_installed_and_touched() -> None:
    code, output = call("doctor")
    assert code == 0
    name = installed()[0]
    assert f"{name} {doctor_module.TOOLKITS[name].version} (verified)" in output
    assert "GPTQ.quantize" in output or "GPTQ.fasterquant" in output


def test_doctor_shows_a_seam_that_is_gone(monkeypatch) -> None:
    def refuse(name):
        raise SeamError(f"{name} has no symbol to hook into")

    monkeypatch.setattr(doctor_module, "enabled", refuse)
    code, output = call("doctor")
    assert code == 1
    assert "has no symbol to hook into" in output
    assert "No toolkit is usable" in output


def test_doctor_fails_where_nothing_is_installed(monkeypatch) -> None:
    monkeypatch.setattr(doctor_module, "installed", tuple)
    code, output = call("doctor")
    assert code == 1
    assert output.count("is not installed") == len(doctor_module.TOOLKITS)
    assert "pip install 'magr-gptq[gptqmodel]'" in output
