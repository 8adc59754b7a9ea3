"""`magr-gptq tune`: what changes and what stays, that it is what loaders see, kills, and wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import PROSE, call, quantize
from packing import write_checkpoint
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model
from transformers import AutoModelForCausalLM

from magr_gptq.app.inputs import read_model
from magr_gptq.app.quantizing.output import leftovers
from magr_gptq.app.scoring import verify
from magr_gptq.app.text import random_starts, windows_at
from magr_gptq.app.tuning import state as state_module
from magr_gptq.app.tuning import tuning
from magr_gptq.app.tuning.checkpoint import read_checkpoint
from magr_gptq.app.tuning.child import perform
from magr_gptq.app.tuning.job import Tuned, TuneJob
from magr_gptq.app.tuning.windows import draw_windows, free_starts
from magr_gptq.tuning import descent
from magr_score import packed
from magr_score.windows import tokenize

pytestmark = pytest.mark.long

GRIDS = {
    "2 bits in groups": {"bits": 2, "group_size": 32},
    "3 bits a row, asymmetric, v2": {"bits": 3, "group_size": -1, "sym": False, "form": "gptq_v2"},
    "4 bits, asymmetric, v1": {"bits": 4, "group_size": 32, "sym": False},
    "4 bits, asymmetric, v2, in an order": {
        "bits": 4,
        "group_size": 32,
        "sym": False,
        "desc_act": True,
        "form": "gptq_v2",
    },
    "8 bits": {"bits": 8, "group_size": 64},
    "compressed-tensors": {"bits": 4, "group_size": 32, "sym": False, "form": "compressed"},
}
FREE = ("scales", "weight_scale", "norm.weight")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model("two-blocks", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)


def job(checkpoint: Path, model: Path, out: str = "out", **settings) -> TuneJob:
    Path(out).mkdir(exist_ok=True)
    return TuneJob(
        str(checkpoint), str(model), str(Path(out).absolute()), str(Path(f".{out}.state").absolute()),
        str(Path("prose.txt").absolute()), **{"samples": 8, "seqlen": 64, **settings},
    )  # fmt: skip


def tune(asked: TuneJob, tell=lambda *_, **__: None) -> tuple[Tuned, dict[str, torch.Tensor]]:
    """In this process; the tensors that were written."""
    found = Tuned(**perform(vars(asked), tell))
    return found, load_file(Path(asked.out, "model.safetensors"))


def held_out_divergence(folder: str, asked: TuneJob) -> float:
    """KL(p ‖ q) in nats a token, by the formula, with the file's weights in the model's own class."""
    held_out = draw_windows(read_model(Path(asked.original)), asked).held_out
    original = AutoModelForCausalLM.from_pretrained(asked.original).float().eval()
    quantized = AutoModelForCausalLM.from_pretrained(asked.original).float().eval()
    weights, packed_ones = packed.tensors(folder), load_file(Path(folder, "model.safetensors"))
    for name, parameter in quantized.named_parameters():
        if name in weights:
            # GPT-2 stores [in, out]
            turned = ".c_" in name and name.removesuffix("weight") + "qweight" in packed_ones
            parameter.data.copy_(weights[name].T if turned else weights[name])
    with torch.no_grad():
        p, q = (each(held_out).logits.double().log_softmax(-1) for each in (original, quantized))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_scales_and_norms_are_nearer_and_every_code_stays(grid: dict, model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", **grid)
    asked = job(checkpoint, model)
    found, after = tune(asked)
    before = load_file(checkpoint / "model.safetensors")
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert name.endswith(FREE) or torch.equal(tensor, after[name]), name
        assert not name.endswith(FREE) or tensor.shape == after[name].shape
    assert {path.name for path in Path("out").iterdir()} == {path.name for path in checkpoint.iterdir()}
    # divergences of 8 bits are near float32's own errors
    near = {"rel": 1e-3, "abs": 1e-7}
    assert found.before == pytest.approx(held_out_divergence(str(checkpoint), asked), **near)
    assert found.after == pytest.approx(held_out_divergence("out", asked), **near)
    # and leave next to nothing to gain
    assert found.after < (1.0 if grid["bits"] == 8 else 0.97) * found.before


@pytest.mark.environments("modern")
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("2 bits in groups", "gptqmodel"),
        ("4 bits, asymmetric, v2, in an order", "gptqmodel"),
        ("compressed-tensors", "transformers"),
    ],
)
def test_an_untouched_loader_predicts_what_the_tuned_file_says(
    name: str, engine: str, model: Path, tmp_path
) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", **GRIDS[name])
    tune(job(checkpoint, model))
    found = verify(str(Path("out").absolute()), engine=engine, predict=True, log=tmp_path / "log")
    assert found["missing"] == []
    assert found["difference"] < 1e-3


def test_biases_are_fitted_where_there_are_some(tmp_path) -> None:
    model = save_tiny_model("gpt2", tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name in tensors:
        if name.endswith("bias"):
            tensors[name] = (0.1 * torch.randn(tensors[name].shape, generator=draw)).half()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=2, group_size=32)
    asked = job(checkpoint, model)
    found, after = tune(asked)
    before = load_file(checkpoint / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"scales", "weight", "bias"}
    assert any("c_attn.bias" in name for name in changed)
    assert all("ln_" in name for name in changed if name.endswith("weight"))
    assert found.after == pytest.approx(held_out_divergence("out", asked), rel=1e-3)
    assert found.after < found.before


def test_where_nothing_improves_the_checkpoint_is_as_it_was(model: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(descent, "RATE", 50.0)
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32)
    found, _ = tune(job(checkpoint, model))
    assert found.kept == 0
    assert found.steps < tuning.PASSES * 8
    assert "nothing improved" in found.says
    assert same_bytes(checkpoint, Path("out"))


@pytest.mark.parametrize(("most", "steps", "measured"), [(48, 16, 5), (10, 10, 4)])
def test_no_window_is_seen_thrice_and_many_windows_are_not_all_seen_twice(
    most: int, steps: int, measured: int, model: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(tuning, "MOST_STEPS", most)
    found, _ = tune(job(write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32), model))
    # eight windows, two measurements a pass, one at the start, and one at the end
    assert (found.steps, len(found.divergences)) == (steps, measured)


def same_bytes(one: Path, other: Path) -> bool:
    """Of the weights' files."""
    return all((one / name.name).read_bytes() == name.read_bytes() for name in other.glob("*.safetensors"))


def test_a_run_that_was_cut_off_goes_on_to_the_same_file(model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=2, group_size=32)
    whole, _ = tune(job(checkpoint, model, "whole"))

    def cut_off(event: str, **values) -> None:
        seen.append(event)
        if event == "steps" and values["done"] == 10:
            raise KeyboardInterrupt

    seen: list[str] = []
    asked = job(checkpoint, model, "parts")
    with pytest.raises(KeyboardInterrupt):
        tune(asked, cut_off)
    seen.clear()
    parts, _ = tune(asked, lambda event, **_: seen.append(event))
    # steps 9 and 10 were after the last evaluation
    assert seen.count("steps") == whole.steps - 8
    assert parts.divergences == whole.divergences
    assert same_bytes(Path("whole"), Path("parts"))


def test_the_state_of_another_run_is_refused(model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=2, group_size=32)
    tune(job(checkpoint, model))
    with pytest.raises(ValueError, match=r"\.out\.state was left by a tuning with other settings or models"):
        tune(job(checkpoint, model, seed=1))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from magr_gptq.app.cli.app import app; app()", *map(str, arguments)]


def test_a_killed_command_goes_on_and_its_result_is_the_same(model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=2, group_size=32)
    options = ("--original", model, "--calibration", "prose.txt", "--samples", 16, "--seqlen", 64)
    state = state_module.state_file(tmp_path / "out")
    with subprocess.Popen(
        command("tune", checkpoint, *options, "--out", "out"), stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as running:
        waited = time.monotonic()
        while not state.exists():
            assert running.poll() is None
            assert time.monotonic() - waited < 300
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    assert not Path("out").exists()
    (left,) = leftovers(tmp_path / "out")
    code, output = call("tune", checkpoint, *options, "--out", "out")
    assert code == 0, output
    assert "Going on from" in output
    assert str(left) in output
    assert not state.exists()
    code, output = call("tune", checkpoint, *options, "--out", "again")
    assert code == 0, output
    assert same_bytes(Path("out"), Path("again"))
    record = json.loads(Path("out", "tune.json").read_text())
    assert record["divergences"] == json.loads(Path("again", "tune.json").read_text())["divergences"]
    assert Path("out", "tune.log").is_file()


def test_held_out_windows_overlap_no_other(model: Path) -> None:
    taken = [40, 3, 90, 60]
    free = free_starts(140, 10, taken)
    assert free == [13, 23, 50, 70, 80, 100, 110, 120, 130]
    assert free_starts(9, 10, []) == []
    with pytest.raises(ValueError, match="too few for 200 windows of 64 and 25 others to hold out"):
        draw_windows(read_model(model), job(model, model, samples=200))


def test_it_tunes_on_text_that_the_quantization_has_not_seen(model: Path) -> None:
    asked = job(model, model)
    files = read_model(model)
    # no two places have the same tokens
    text = " ".join(str(number) for number in range(1000))
    Path("prose.txt").write_text(text)
    _, tokens = tokenize(files.tokenizer, text, asked.cut)
    drawn = random_starts(tokens, 8, 64, asked.seed, 0)
    drawn_tokens = {place for start in drawn for place in range(start, start + 64)}
    places = {tuple(tokens[start : start + 64]): start for start in range(len(tokens) - 63)}
    found = draw_windows(files, asked)
    starts = [places[tuple(row)] for rows in (found.training, found.held_out) for row in rows.tolist()]
    used = [place for start in starts for place in range(start, start + 64)]
    assert found.unseen == len(found.training) == 8
    assert len(used) == len(set(used))
    assert not drawn_tokens & set(used)


def test_windows_of_the_quantization_fill_up_where_the_text_is_short(model: Path, tmp_path) -> None:
    samples = 24
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=2, group_size=32)
    asked = job(checkpoint, model, samples=samples)
    files = read_model(model)
    found = draw_windows(files, asked)
    assert 0 < found.unseen < samples == len(found.training)
    _, tokens = tokenize(files.tokenizer, PROSE, asked.cut)
    drawn = windows_at(random_starts(tokens, samples, 64, asked.seed, 0), tokens, 64, [])
    assert found.training[found.unseen :].tolist() == drawn[found.unseen :]
    tuned, _ = tune(asked)
    assert (tuned.windows, tuned.unseen) == (samples, found.unseen)
    assert (
        f"{samples - found.unseen} of the {samples} windows are those that quantize draws" in tuned.repeated
    )


def other(folder: Path, change) -> Path:
    """The checkpoint with another config."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def unlike(folder: Path, change) -> Path:
    """The checkpoint with other tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LAYER = "model.layers.1.mlp.up_proj"
CONFIGS = {
    "no quantization": (lambda c: c.pop("quantization_config"), "is not quantized"),
    "another method": (
        lambda c: c["quantization_config"].update(quant_method="awq"),
        "quant_method='awq'; tune reads gptq and compressed-tensors",
    ),
    "another format": (
        lambda c: c["quantization_config"].update(checkpoint_format="marlin"),
        "checkpoint_format='marlin'; tune reads gptq and gptq_v2",
    ),
    "a quantized head": (lambda c: c["quantization_config"].update(lm_head=True), "quantized output layer"),
    "own code": (lambda c: c.update(auto_map={}) or c.update(auto_map={"A": "b"}), "brings its own Python"),
}
TENSORS = {
    "a layer without scales": (lambda t: t.pop(f"{LAYER}.scales"), f"has no tensor {LAYER}.scales"),
    "another width of codes": (
        lambda t: t.update({f"{LAYER}.g_idx": t[f"{LAYER}.g_idx"][:64].clone()}),
        f"{LAYER} has 6 bits; tune reads 2, 3, 4 and 8",
    ),
    "a layer of another name": (
        lambda t: [t.update({k.replace("1.mlp", "1.moe"): t.pop(k)}) for k in list(t) if "1.mlp.up" in k],
        "model.layers.1.moe.up_proj of the checkpoint is no layer of --original",
    ),
    "no norm": (lambda t: t.pop("model.norm.weight"), "the checkpoint has no tensor model.norm.weight"),
    "a tensor too many": (
        lambda t: t.update(strange=torch.ones(1)),
        "the checkpoint's tensor strange [1] is none of --original",
    ),
}


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_checkpoint_that_cannot_be_tuned_is_named_at_once(change, message, model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32)
    other(checkpoint, change)
    code, output = call("tune", checkpoint, "--original", model, "--calibration", "prose.txt", "--out", "out")
    assert code == 2
    assert message in output
    assert not Path("out").exists()


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_the_model_are_named(change, message, model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32)
    unlike(checkpoint, change)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        tune(job(checkpoint, model))


def test_a_checkpoint_of_another_model_is_refused(model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32)
    tail = save_tiny_model("tail", tmp_path / "tail")
    with pytest.raises(ValueError, match=r"\[128, 256\] in the checkpoint and \[192, 320\] in --original"):
        tune(job(checkpoint, tail))


def test_predictions_that_are_not_finite_are_refused(model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32)
    unlike(checkpoint, lambda t: t["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(ValueError, match="predictions are not finite"):
        tune(job(checkpoint, model))


WRONG = {
    "no original": (("--original", "no/such/folder"), "no model folder no/such/folder"),
    "a quantized original": (("--original", "checkpoint"), "is quantized already"),
    "no text": (("--calibration", "nowhere.txt"), "there is no file"),
    "a folder that is used": (("--out", "checkpoint"), "is not empty"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named_before_the_work(change, message, model: Path, tmp_path) -> None:
    write_checkpoint(model, tmp_path / "checkpoint", bits=3, group_size=32)
    given = {"--original": str(model), "--calibration": "prose.txt", "--out": "out", **dict([change])}
    code, output = call("tune", "checkpoint", *(part for pair in given.items() for part in pair))
    assert code == 2
    assert message in output


def test_a_folder_without_a_model_is_named(model: Path) -> None:
    code, output = call("tune", "nowhere", "--original", model, "--calibration", "prose.txt", "--out", "out")
    assert code == 2
    assert "nowhere is not a model folder" in output


@pytest.mark.environments("modern")
def test_quantize_tunes_what_it_saved(model: Path, worker) -> None:
    options = ("--bits", 2, "--group-size", 32, "--seqlen", 64, "--samples", 8)
    code, output = quantize(model, *options, "--tune")
    assert code == 0, output
    assert "Tuned in" in output
    record = json.loads(Path("out", "magr.json").read_text())
    divergences = record["tuned"]["divergences"]
    assert divergences[record["tuned"]["kept"]] == min(divergences)
    assert "Tuned afterwards" in Path("out", "README.md").read_text()
    assert not list(Path("out").glob(".*"))
    code, output = quantize(model, *options, out="plain")
    asked = job(Path("plain"), model, "also", seed=0)
    found, after = tune(asked)
    assert found.divergences == pytest.approx(divergences, rel=1e-4)
    assert after.keys() == load_file("out/model.safetensors").keys()


@pytest.mark.parametrize("option", ["--trust-remote-code", "--allow-pickle"])
def test_quantize_refuses_to_tune_what_it_would_not_load(option: str, model: Path) -> None:
    code, output = quantize(model, "--tune", option)
    assert code == 2
    assert "--tune runs no code of a model and loads no pickles" in output


def test_a_single_file_may_have_any_name(model: Path, tmp_path) -> None:
    checkpoint = write_checkpoint(model, tmp_path / "checkpoint", bits=4, group_size=32)
    layers = read_checkpoint(checkpoint).layers
    (checkpoint / "model.safetensors").rename(checkpoint / "gptq_model-4bit-32g.safetensors")
    assert read_checkpoint(checkpoint).layers == layers
    assert len(layers) == 14
