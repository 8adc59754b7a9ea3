"""Bad input: what the command refuses from the files alone, and the checks that a worker makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import bad_models
import pytest
import torch
from bad_models import INDEX, SINGLE, broken
from safetensors.torch import load_file, save_file
from tiny import _rewrite, save_tiny_model
from typer.testing import CliRunner

from magr_gptq.app import inputs
from magr_gptq.app.checks import PICKLES, check_model_folder, find_shards, tensor_shapes
from magr_gptq.app.cli.app import app
from magr_gptq.app.quantizing import space
from magr_gptq.errors import InputError
from magr_gptq.toolkits import installed


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def loaded(good: Path):
    """Its config and tokenizer."""
    return inputs.load_model_files(str(good))


def refused(model: object, *options: str) -> str:
    """What `quantize` says, having refused without a trace."""
    Path("prose.txt").write_text("prose")
    before = set(Path().iterdir())
    arguments = ["quantize", str(model), "--engine", installed()[0], "--calibration", "prose.txt"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--out", "out", *options])
    assert result.exit_code == 2, result.output
    assert set(Path().iterdir()) == before
    return result.output


def lfs_pointer(folder: Path) -> None:
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def packed_tensors(folder: Path) -> None:
    save_file({"model.layers.0.mlp.up_proj.qweight": torch.zeros(2, 2)}, folder / SINGLE)


def sharded_and(spoil):
    def both(folder: Path) -> None:
        bad_models.shard(folder)
        spoil(folder)

    return both


BAD_MODELS = {
    "no config": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "config cut short": (lambda f: bad_models.truncate(f / "config.json"), "cannot be read as JSON"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "has no weights: neither model.safetensors nor"),
    "weights cut short": (lambda f: bad_models.truncate(f / SINGLE), "is no complete safetensors file"),
    "weights empty": (lambda f: (f / SINGLE).write_bytes(b""), "is no complete safetensors file"),
    "weights a Git LFS pointer": (lfs_pointer, "by `git lfs pull`"),
    "shard missing": (bad_models.lose_shard, "1 files that model.safetensors.index.json names are missing"),
    "shard cut short": (
        sharded_and(lambda f: bad_models.truncate(f / "model-00002-of-00002.safetensors")),
        "model-00002-of-00002.safetensors is no complete safetensors file",
    ),
    "shard without a tensor": (bad_models.lose_indexed_tensor, "1 tensors that"),
    "index missing": (sharded_and(lambda f: (f / INDEX).unlink()), "but neither model.safetensors nor"),
    "index cut short": (sharded_and(lambda f: bad_models.truncate(f / INDEX)), "cannot be read as JSON"),
    "index empty": (sharded_and(lambda f: (f / INDEX).write_text("{}")), "has no weight_map"),
    "pickled": (bad_models.to_pickle, "can run code when they are loaded; convert them to safetensors"),
    "own code": (bad_models.bring_code, "read that code, then give --trust-remote-code"),
    "quantized, by config": (
        lambda f: _rewrite(f / "config.json", quantization_config={"bits": 4}),
        "is quantized already; give the unquantized model",
    ),
    "quantized, by file": (lambda f: (f / "quantize_config.json").write_text("{}"), "is quantized already"),
    "quantized, by tensors": (packed_tensors, "is quantized already"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_input_model(spoil, message: str, good: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(broken(good, tmp_path / "bad", spoil))
    assert not Path(bad_models.EXECUTED).exists()


BAD_OUTPUTS = {
    "in use": "is not empty; name another --out",
    "a file": "is a file, not a folder",
    "without a parent": "make it, or name another",
    "read-only parent": "cannot be written to",
}


@pytest.mark.parametrize(("place", "message"), BAD_OUTPUTS.items(), ids=BAD_OUTPUTS)
def test_bad_input_output(place: str, message: str, good: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = {"without a parent": "absent/out", "read-only parent": "/sys/out"}.get(place, "given")
    if place == "in use":
        Path("given").mkdir()
        Path("given", "precious").write_text("")
    if place == "a file":
        Path("given").write_text("")
    # the last --out wins
    assert message in refused(good, "--out", out)


@pytest.mark.parametrize("prepare", [bad_models.as_it_is, bad_models.shard], ids=["single", "sharded"])
def test_complete_folders_pass(prepare, good: Path, tmp_path, loaded) -> None:
    folder = broken(good, tmp_path / "model", prepare)
    check_model_folder(folder)
    inputs.check_all_weights(folder, loaded[0])
    names = {name for shard in find_shards(folder) for name, _ in tensor_shapes(shard)}
    assert names == set(load_file(good / SINGLE))


def test_pickles_and_code_pass_where_they_are_asked_for(good: Path, tmp_path, loaded) -> None:
    pickled = broken(good, tmp_path / "pickled", bad_models.to_pickle)
    check_model_folder(pickled, allow_pickle=True)
    inputs.check_all_weights(pickled, loaded[0])
    check_model_folder(broken(good, tmp_path / "code", bad_models.bring_code), trust_remote_code=True)


def test_code_runs_only_where_it_is_trusted(good: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = broken(good, tmp_path / "model", bad_models.bring_code)
    inputs.load_model_files(str(folder), trust_remote_code=False)
    assert not (tmp_path / bad_models.EXECUTED).exists()
    inputs.load_model_files(str(folder), trust_remote_code=True)
    assert (tmp_path / bad_models.EXECUTED).exists()


def wide(folder: Path) -> None:
    weights = load_file(folder / SINGLE)
    weights[bad_models.UP] = weights[bad_models.UP][:, 1:].contiguous()
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def cut_pickle(folder: Path) -> None:
    bad_models.to_pickle(folder)
    bad_models.truncate(folder / "pytorch_model.bin")


BAD_WEIGHTS = {
    "a tensor missing": (
        bad_models.drop_tensor,
        "1 weights are missing from .* such as model.layers.0.mlp.up",
    ),
    "a shape that the config denies": (wide, "cannot be loaded"),
    "pickle cut short": (cut_pickle, "cannot be loaded"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_bad_input_weights(spoil, message: str, good: Path, tmp_path, loaded) -> None:
    with pytest.raises(InputError, match=message):
        inputs.check_all_weights(broken(good, tmp_path / "bad", spoil), loaded[0])


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


BAD_FILES = {
    "a kind that transformers doesn't know": (
        lambda f: _rewrite(f / "config.json", model_type="foobar"), "has no config to load: .*foobar",
    ),
    "no tokenizer": (no_tokenizer, "has no tokenizer to load"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_input_model_files(spoil, message: str, good: Path, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        inputs.load_model_files(str(broken(good, tmp_path / "bad", spoil)))


def test_bad_input_tokenizer_of_another_model(loaded) -> None:
    config, _ = loaded
    inputs.check_vocabulary([[0, 256]], config)
    with pytest.raises(InputError, match="gives token 257, and the model knows 257"):
        inputs.check_vocabulary([[0, 257], [1, 2]], config)


def test_bad_input_hub_id_without_a_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="there is no folder nobody/nothing here, and the hub gave no such"):
        inputs.local_folder("nobody/nothing")


def test_a_hub_model_is_checked_like_a_folder(good: Path, tmp_path, monkeypatch) -> None:
    revision = "0" * 40
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = broken(good, repository / "snapshots" / revision, bad_models.as_it_is)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert inputs.local_folder("some/model") == snapshot
    (snapshot / SINGLE).unlink()
    with pytest.raises(InputError, match="has no weights"):
        inputs.local_folder("some/model")


def test_pickles_and_code_are_not_even_downloaded(good: Path, monkeypatch) -> None:
    left_out = []

    def download(name: str, ignore_patterns: list[str]) -> str:
        left_out.append(set(ignore_patterns))
        return str(good)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    inputs.local_folder("some/model")
    inputs.local_folder("some/model", allow_pickle=True, trust_remote_code=True)
    assert left_out[0] - left_out[1] == {"*.py", *PICKLES}


def test_the_packed_size_is_that_of_a_real_checkpoint(good: Path) -> None:
    shapes = dict(tensor_shapes(good / SINGLE))
    packed = [shape for name, shape in shapes.items() if ".layers." in name and len(shape) == 2]
    assert len(packed) == 7
    numbers = sum(rows * columns for rows, columns in packed)
    others = sum(torch.Size(shape).numel() for shape in shapes.values()) - numbers
    groups = numbers / 32
    assert space.packed_bytes(good, 3, 32) == numbers * 3 / 8 + groups * (2 + 3 / 8) + others * 2
    rows = sum(rows for rows, _ in packed)
    assert space.packed_bytes(good, 2, -1) == numbers * 2 / 8 + rows * (2 + 2 / 8) + others * 2


def test_the_packed_size_of_pickles_is_theirs(good: Path, tmp_path) -> None:
    folder = broken(good, tmp_path / "model", bad_models.to_pickle)
    assert space.packed_bytes(folder, 2, 32) == (folder / "pytorch_model.bin").stat().st_size


def test_bad_input_disk_that_is_too_small(good: Path, tmp_path, monkeypatch) -> None:
    wanted = int(space.packed_bytes(good, 4, 32) * space.MARGIN + space.EXTRA_BYTES) + 1
    asked = []

    def usage_with(free: int):
        def usage(path):
            asked.append(path)
            return shutil._ntuple_diskusage(0, 0, free)

        return usage

    monkeypatch.setattr(shutil, "disk_usage", usage_with(wanted))
    space.check_space(tmp_path / "absent" / "out", good, 4, 32)
    assert asked == [tmp_path]
    monkeypatch.setattr(shutil, "disk_usage", usage_with(wanted - 1))
    with pytest.raises(InputError, match=r"needs about 0\.0. GB, and the disk of .* has 0\.0. GB left"):
        space.check_space(tmp_path / "absent" / "out", good, 4, 32)
