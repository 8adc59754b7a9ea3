"""`magr-gptq inspect`: the Hessians it sees, what it refuses, what it shows and leaves behind."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from bad_models import save_tiny
from command_line import PROSE, call_alone
from command_line import call as command
from safetensors.torch import load_file, save_file
from tiny import calibration_rows, save_tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

from magr_gptq.app.cli import inspect as inspect_module
from magr_gptq.app.cli.app import app
from magr_gptq.app.inspecting import figure as figure_module
from magr_gptq.app.inspecting import hessians, views
from magr_gptq.app.inspecting.forecast import Forecast, LayerForecast, forecast, fraction_rank
from magr_gptq.app.text import random_windows

NEEDS_MATPLOTLIB = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra eval")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("prose.txt").write_text(PROSE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {shape: save_tiny_model(shape, folder / shape) for shape in ("llama", "gpt2")}


def inspect(model: object, *more: object, text: str = "prose.txt") -> tuple[int, str]:
    """Exit code and everything printed."""
    arguments = ["inspect", model, "--calibration", text, "--samples", 4, "--seqlen", 64, *more]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def load(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder).float()


@torch.no_grad()
def reference(model: nn.Module, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """XᵀX of every linear layer below the head, in float64 and from one batch."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(_module, arguments, _output) -> None:
            inputs = arguments[0].flatten(0, -2).double()
            found[name] = inputs.T @ inputs

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name != "lm_head"
    ]
    model(input_ids=rows)
    for handle in handles:
        handle.remove()
    return found


def seen(model: nn.Module, layers, batches) -> tuple[dict[str, torch.Tensor], list[hessians.LayerInput]]:
    calls: list[int] = []
    inputs = hessians.layer_inputs(model, layers, batches, lambda: calls.append(1))
    assert len(calls) == len(batches)
    return {name: given.hessian for given in inputs for name in given.names}, inputs


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_hessians_are_those_of_the_whole_calibration_set(shape: str, folders) -> None:
    model, rows = load(folders[shape]), calibration_rows(5)
    expected = reference(model, rows)
    before = model(input_ids=rows).logits
    layers = hessians.linear_layers(model)
    assert set(layers) == set(expected)
    found, inputs = seen(model, layers, rows.split(2))
    for name, hessian in expected.items():
        torch.testing.assert_close(found[name].double(), hessian, rtol=1e-4, atol=1e-4 * float(hessian.max()))
        assert hessians.matrix_of(layers[name]).shape[1] == len(hessian)
    assert all(given.tokens == rows.numel() for given in inputs)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(input_ids=rows).logits, before)


def test_layers_with_the_same_input_share_one_hessian(folders) -> None:
    model = load(folders["llama"])
    _, inputs = seen(model, hessians.linear_layers(model), calibration_rows(4).split(2))
    kinds = [tuple(name.rpartition(".")[2] for name in given.names) for given in inputs]
    assert kinds == [
        ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",),
    ]  # fmt: skip


def test_turns_keep_to_their_memory_and_change_nothing(folders) -> None:
    model, batches = load(folders["llama"]), calibration_rows(4).split(2)
    layers = hessians.linear_layers(model)
    expected, _ = seen(model, layers, batches)
    turns = list(hessians.in_turns(layers, limit=2 * 4 * 128**2))
    assert [len(turn) for turn in turns] == [2, 2, 2, 1]
    assert [name for turn in turns for name in turn] == list(layers)
    for turn in turns:
        for name, hessian in seen(model, turn, batches)[0].items():
            assert torch.equal(hessian, expected[name])
    assert [len(turn) for turn in hessians.in_turns(layers, limit=1)] == [1] * 7


class Odd(nn.Module):
    """`both` shares its first input with `first` and its second with nobody; `idle` is never called."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
        for name in ("first", "both", "idle"):
            setattr(self, name, nn.Linear(6, 6))

    @property
    def base_model(self) -> Odd:
        return self

    def forward(self, *, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        assert not use_cache
        x = self.embedding[input_ids]
        self.first(x)
        self.both(x)
        # written over after it was seen
        x.mul_(100)
        return self.both(self.embedding[input_ids] + 1)


def test_layers_that_are_called_twice_or_never() -> None:
    model, rows = Odd(), torch.randint(9, (4, 5), generator=torch.Generator().manual_seed(0))
    found, inputs = seen(model, hessians.linear_layers(model), rows.split(1))
    x = model.embedding[rows].flatten(0, 1)
    torch.testing.assert_close(found["first"], x.T @ x)
    torch.testing.assert_close(found["both"], x.T @ x + (x + 1).T @ (x + 1))
    assert {given.names: given.tokens for given in inputs} == {("first",): 20, ("both",): 40}


REFUSED = {
    "bits": (["--bits", "4,5"], "--bits 5: GPTQ checkpoints hold 2, 3, 4 or 8 bits"),
    "no number": (["--bits", "4;3"], "--bits 4;3: give whole numbers with commas between"),
    "group": (["--group-size", "0"], "--group-size 0"),
    "samples": (["--samples", "0"], "'--samples'"),
    "json folder": (["--json", "."], "--json .: give a file in a folder that exists"),
    "figure's folder": (["--figure", "absent/a.png"], "--figure absent/a.png: give a file in a folder"),
    "figure's kind": (["--figure", "a.jpg"], "--figure a.jpg: the name must end in .png"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_options_are_named_before_any_work(options: list[str], message: str, monkeypatch) -> None:
    monkeypatch.setattr(inspect_module, "read_model", pytest.fail)
    code, output = inspect("absent", *options)
    assert code == 2
    assert message in output


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("matplotlib", ["--figure", "a.png"], "--figure needs matplotlib; pip install 'magr-gptq[eval]'"),
        ("transformers", [], "transformers, which is missing; pip install transformers"),
    ],
)
def test_a_missing_package_is_named(module: str, options, message: str, folders, monkeypatch) -> None:
    monkeypatch.setattr(inspect_module, "find_spec", lambda name: None if name == module else find_spec(name))
    code, output = inspect(folders["llama"], *options)
    assert code == 2
    assert message in output


def copy_of(folder: Path) -> Path:
    Path("copy").mkdir()
    for file in folder.iterdir():
        Path("copy", file.name).write_bytes(file.read_bytes())
    return Path("copy")


def test_a_quantized_model_is_refused(folders) -> None:
    copy = copy_of(folders["llama"])
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    code, output = inspect(copy)
    assert code == 2
    assert "is quantized already; give the unquantized model" in output


def test_models_and_texts_that_cannot_be_used_are_named(folders) -> None:
    assert inspect("absent/") == (
        2, "Error: there is no model folder absent/; give a folder, or a hub id such as org/name\n",
    )  # fmt: skip
    assert "there is no file absent.txt" in inspect(folders["llama"], text="absent.txt")[1]
    Path("short.txt").write_text("short")
    assert "5 tokens, too few for one window of 64" in inspect(folders["llama"], text="short.txt")[1]
    copy = copy_of(folders["llama"])
    (copy / "model.safetensors").write_bytes(b"not safetensors")
    code, output = inspect(copy)
    assert code == 2
    assert "is not a complete safetensors file" in output


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ("model.layers.0.self_attn.v_proj", "Error: model.layers.0.self_attn.v_proj"),
        ("model.layers.0.input_layernorm", "Error: the input of model.layers.0.self_attn.q_proj"),
    ],
)
def test_values_that_are_no_numbers_are_named(damaged: str, named: str, folders) -> None:
    copy = copy_of(folders["llama"])
    weights = load_file(copy / "model.safetensors")
    weights[f"{damaged}.weight"].view(-1)[0] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    code, output = inspect(copy)
    assert code == 2
    assert f"{named} holds NaN or infinity" in output


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_what_is_found_is_what_the_mathematics_says(shape: str, folders) -> None:
    code, output = inspect(folders[shape], "--bits", "3,2,3", "--group-size", 32, "--json", "found.json")
    assert code == 0, output
    found = json.loads(Path("found.json").read_text())
    model = load(folders[shape])
    layers = hessians.linear_layers(model)
    assert [layer["name"] for layer in found["layers"]] == list(layers)
    assert (found["bits"], found["group_size"], found["seqlen"]) == ([3, 2], 32, 64)
    tokens = AutoTokenizer.from_pretrained(folders[shape])(PROSE)["input_ids"]
    hessian_of = reference(model, torch.tensor(random_windows(tokens, 4, 64, 0)))
    for layer in found["layers"]:
        weight = hessians.matrix_of(layers[layer["name"]])
        hessian = hessian_of[layer["name"]].float()
        assert layer["shape"] == list(weight.shape)
        assert layer["fraction_rank"] == pytest.approx(fraction_rank(hessian), abs=2 / len(hessian))
        for one, bits in zip(layer["forecasts"], (3, 2), strict=True):
            expected = forecast(weight, hessian, bits=bits, group_size=32)
            assert one["loss_before"] == pytest.approx(expected.loss_before, rel=1e-3)
            assert one["loss_after"] == pytest.approx(expected.loss_after, rel=1e-3)
            assert one["largest_before"] == pytest.approx(float(weight.abs().amax(1).mean()))
            assert one["largest_after"] == pytest.approx(float(expected.largest_after.mean()), rel=1e-3)
            assert one["helps"] == expected.helps
    ranks = [layer["fraction_rank"] for layer in found["layers"]]
    assert found["fraction_rank"]["mean"] == pytest.approx(sum(ranks) / len(ranks))
    assert (found["fraction_rank"]["min"], found["fraction_rank"]["max"]) == (min(ranks), max(ranks))
    assert {path.name for path in Path().iterdir()} == {"prose.txt", "found.json"}


def test_the_terminal_shows_every_layer_and_every_width(folders) -> None:
    code, output = inspect(folders["llama"], "--json", "found.json")
    assert code == 0, output
    found = json.loads(Path("found.json").read_text())
    assert "model.layers.0." in output
    for layer in found["layers"]:
        line = next(
            line for line in output.splitlines() if layer["name"].removeprefix("model.layers.0.") in line
        )
        for one in layer["forecasts"]:
            assert f"{views.percent(one['loss_before'])}→{views.percent(one['loss_after'])}" in line
    for bits in (4, 3, 2):
        assert f"{bits} bits: mean predicted loss" in output
    assert "it is not the model's perplexity" in " ".join(output.split())
    assert "fewer tokens" not in output


def test_nothing_but_the_result_is_printed(folders) -> None:
    options = ["--calibration", "prose.txt", "--samples", 4, "--seqlen", 64, "--bits", 4]
    done = call_alone("inspect", folders["llama"], *options)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Predicted loss is" in done.stdout


def test_the_seqlen_is_lowered_to_the_models_limit(folders) -> None:
    copy = copy_of(folders["llama"])
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    code, output = inspect(copy, "--bits", 4, "--json", "found.json")
    assert code == 0, output
    assert "Windows of 32 tokens" in output
    assert json.loads(Path("found.json").read_text())["seqlen"] == 32


def made_up(name: str, *, tokens: int = 100, helps: bool = True, skipped: str | None = None) -> LayerForecast:
    rows = torch.tensor([1.0, 3.0])
    found = Forecast(2, 0.8, rows, rows / 2, loss_before=0.5, loss_after=0.25 if helps else 0.5)
    return LayerForecast(name, (2, 50), tokens, 0.5, () if skipped else (found,), skipped)


def test_what_to_watch_for_is_said(capsys) -> None:
    layers = [
        made_up("model.a.fine"),
        made_up("model.a.hard", helps=False),
        made_up("model.b.short", tokens=49),
        made_up("model.b.expert", skipped="no token reached it", tokens=0),
    ]
    assert list(views.remarks(layers)) == [
        "model.a.hard: MagR would not help at 2 bits",
        "model.b.expert was left out: no token reached it",
        "1 layers were given fewer tokens than they have inputs, which limits their fraction rank; "
        "give more --samples",
    ]
    views.show(layers)
    output = " ".join(capsys.readouterr().out.split())
    assert "mean predicted loss 50 % without MagR, 33 % with it; lower in 2 of 3 layers" in output
    assert "hard 50 2 50 50→50" in output


def test_layers_left_out_for_the_same_reason_are_told_in_one_line() -> None:
    layers = [made_up(f"model.{number}.up", skipped="fused") for number in range(3)]
    assert list(views.left_out(layers)) == ["3 layers, such as model.0.up, were left out: fused"]


@pytest.mark.skipif(find_spec("gptqmodel") is None, reason="needs GPTQModel")
def test_inspect_counts_the_experts_that_quantize_does(worker, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)
    folder = save_tiny(
        "qwen3_moe", tmp_path / "mixture", hidden_size=64, intermediate_size=64, moe_intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32, num_experts=8,
        num_experts_per_tok=8,
    )  # fmt: skip
    given = ["--calibration", "prose.txt", "--samples", 4, "--seqlen", 64]
    # GPTQModel, if it ran in this process, has replaced the class of the experts for good
    done = call_alone("inspect", folder, *given, "--bits", 3, "--json", "found.json")
    assert done.returncode == 0, done.stderr
    told = "48 layers, such as model.layers.0.mlp.experts.0.gate_proj, were left out"
    assert told in " ".join(done.stdout.split())
    code, output = command("quantize", folder, *given, "--group-size", 32, "--out", "out", "--no-verify")
    assert code == 0, output
    names = {layer["name"] for layer in json.loads(Path("found.json").read_text())["layers"]}
    assert names == {layer["name"] for layer in json.loads(Path("out", "magr.json").read_text())["layers"]}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["m.l.0.q", "m.l.1.q"], "m.l."), (["m.la.q", "m.lb.q"], "m."), (["q", "m.q"], ""), (["m.q"], "m.")],
)
def test_the_prefix_that_all_names_share(names: list[str], prefix: str) -> None:
    assert views.common_prefix(names) == prefix


@pytest.mark.parametrize(
    ("share", "text"), [(0.00123, "0.12"), (0.0949, "9.5"), (0.0996, "10"), (0.1234, "12"), (2.5, "250")]
)
def test_percentages_have_two_digits(share: float, text: str) -> None:
    assert views.percent(share) == text


def test_the_figure_shows_three_kinds_of_layers_from_all_over_the_model() -> None:
    names = [f"{block}.{kind}" for block in range(6) for kind in ("q", "o", "down")]
    assert [layer.name for layer in figure_module.chosen([made_up(name) for name in names])] == [
        "1.q", "3.o", "5.down",
    ]  # fmt: skip
    assert [layer.name for layer in figure_module.chosen([made_up("0.q"), made_up("1.q")])] == ["0.q", "1.q"]


@NEEDS_MATPLOTLIB
def test_the_figure_is_a_png(folders) -> None:
    from matplotlib.image import imread

    code, output = inspect(folders["gpt2"], "--bits", "8,2", "--figure", "found.png")
    assert code == 0, output
    image = imread("found.png")
    assert image.shape[0] > 900
    # a light background with something on it
    assert image[0, 0].tolist() == [1, 1, 1, 1]
    assert 0.5 < image[..., :3].mean() < 0.99
