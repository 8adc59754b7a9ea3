"""A quantized checkpoint on the disk: whether it can be tuned, its layers, and a copy with new numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from magr_gptq.app.checks import find_shards, tensor_shapes
from magr_gptq.errors import InputError
from magr_score.packed import COMPRESSED, GPTQ, Grid, compressed_grid, gptq_grid

FORMATS = ("gptq", "gptq_v2")
BITS = (2, 3, 4, 8)
PARTS = {"gptq": GPTQ, "compressed-tensors": COMPRESSED}
# of a layer's tensors, the packed codes and the scales
CODES = {"gptq": "qweight", "compressed-tensors": "weight_packed"}
SCALES = {"gptq": "scales", "compressed-tensors": "weight_scale"}


@dataclass(frozen=True)
class Checkpoint:
    """A folder with packed weights.

    quantization: its config's part of that name. kept: the file of every tensor. layers: names with codes.
    """

    folder: Path
    quantization: dict[str, Any]
    kept: dict[str, Path]
    layers: list[str]

    @property
    def method(self) -> str:
        """gptq or compressed-tensors."""
        return str(self.quantization["quant_method"])

    def tensor(self, name: str) -> Tensor:
        """One tensor as it was saved."""
        with safe_open(self.kept[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def grid(self, layer: str) -> Grid:
        """A layer's codes, scales and groups; InputError where they can't be read."""
        names = {key: f"{layer}.{key}" for key in PARTS[self.method] if f"{layer}.{key}" in self.kept}
        part = {key: self.tensor(name) for key, name in names.items()}
        if self.method == "compressed-tensors":
            return compressed_grid(part, self.quantization)
        check_bits(layer, 32 * len(part["qweight"]) / len(part["g_idx"]))
        return gptq_grid(part, self.quantization)

    def scales_name(self, layer: str) -> str:
        """The tensor of a layer's scales."""
        return f"{layer}.{SCALES[self.method]}"

    def as_saved(self, scales: Tensor) -> Tensor:
        """Scales [out, groups] as the file has them: GPTQ's turned round."""
        return scales.T if self.method == "gptq" else scales

    def others(self) -> list[str]:
        """The names of the tensors that are of no packed layer, and of biases."""
        packed = {f"{layer}.{key}" for layer in self.layers for key in PARTS[self.method]}
        return [name for name in self.kept if name not in packed]


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, of which only headers are read.

    Raises:
        InputError: there is none, or it is in a format that can't be tuned; the message says which would do.
    """
    folder = path.expanduser().absolute()
    quantization = _quantization(folder)
    kept = {name: shard for shard in _shards(folder) for name, _ in tensor_shapes(shard)}
    suffix = f".{CODES[quantization['quant_method']]}"
    layers = [name.removesuffix(suffix) for name in kept if name.endswith(suffix)]
    if not layers:
        raise InputError(f"{folder} has no packed layer, no tensor that ends in {suffix}")
    found = Checkpoint(folder, quantization, kept, layers)
    _check_parts(found)
    return found


def check_bits(layer: str, bits: float) -> None:
    """InputError where codes are not of a width that is one stream of bits in every release."""
    if bits not in BITS:
        raise InputError(f"{layer} has {bits:g} bits; tune reads 2, 3, 4 and 8")


def _shards(folder: Path) -> list[Path]:
    # AutoGPTQ names its only file after the grid
    files = list(folder.glob("*.safetensors"))
    return files if len(files) == 1 else find_shards(folder)


def _quantization(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); copy or download it again") from error
    if config.get("auto_map"):
        raise InputError(
            f"{folder} brings its own Python code (auto_map in config.json), which tune does not run"
        )
    found: dict[str, Any] = config.get("quantization_config") or {}
    if not found:
        raise InputError(
            f"{folder} is not quantized: its config.json has no quantization_config; give the checkpoint "
            "first, and the unquantized model as --original"
        )
    _check_format(folder, found)
    return found


def _check_format(folder: Path, found: dict[str, Any]) -> None:
    method = found.get("quant_method")
    if method not in CODES:
        raise InputError(
            f"{folder} has quant_method={method!r}; tune reads gptq and compressed-tensors "
            "(auto-round saves gptq with --format auto_gptq)"
        )
    if method == "compressed-tensors":
        _check_compressed(folder, found)
        return
    stated = found.get("checkpoint_format") or found.get("format") or "gptq"
    if stated not in FORMATS:
        raise InputError(f"{folder} has checkpoint_format={stated!r}; tune reads {' and '.join(FORMATS)}")
    if found.get("lm_head"):
        raise InputError(f"{folder} has a quantized output layer (lm_head), which tune does not take")


def _check_compressed(folder: Path, found: dict[str, Any]) -> None:
    groups = found.get("config_groups", {})
    if found.get("format") != "pack-quantized" or len(groups) != 1:
        raise InputError(
            f"{folder} has compressed-tensors' format {found.get('format')!r} with {len(groups)} groups of "
            "layers; tune reads pack-quantized with one"
        )
    check_bits(str(folder), next(iter(groups.values()))["weights"]["num_bits"])


def _check_parts(checkpoint: Checkpoint) -> None:
    optional = ("weight_zero_point", "weight_g_idx")
    for layer in checkpoint.layers:
        for key in PARTS[checkpoint.method]:
            if key not in optional and f"{layer}.{key}" not in checkpoint.kept:
                raise InputError(
                    f"{checkpoint.folder} has no tensor {layer}.{key}; copy or download it again"
                )
        if f"{layer}.weight_g_idx" in checkpoint.kept:
            raise InputError(f"{layer} has weight_g_idx, an order of columns that tune does not read")


def write_copy(checkpoint: Checkpoint, out: Path, changed: Mapping[str, Tensor]) -> None:
    """A copy of the folder's files in `out`, with these tensors in place of those of the same names.

    Names, order, dtypes and shapes stay, and so does every other tensor, bit for bit. `out` may be the folder
    itself.
    """
    shards = set(checkpoint.kept.values())
    for file in checkpoint.folder.iterdir():
        if file.is_file() and file not in shards and out != checkpoint.folder:
            shutil.copy2(file, out / file.name)
    for shard in sorted(shards):
        _write_shard(shard, out / shard.name, changed)


def _write_shard(shard: Path, target: Path, changed: Mapping[str, Tensor]) -> None:
    with safe_open(shard, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        metadata = file.metadata()
    for name in tensors.keys() & changed.keys():
        tensors[name] = _like(changed[name], tensors[name], name)
    scratch = target.with_name(f"{target.name}.new")
    save_file(tensors, scratch, metadata=metadata)
    scratch.rename(target)


def _like(value: Tensor, saved: Tensor, name: str) -> Tensor:
    """The value in the dtype of what it replaces; it must be exact there."""
    found = value.to("cpu", saved.dtype).contiguous()
    if found.shape != saved.shape or not torch.equal(found.float(), value.cpu().float()):
        raise RuntimeError(f"{name} is tuned to what {saved.dtype} {tuple(saved.shape)} cannot hold")
    return found
