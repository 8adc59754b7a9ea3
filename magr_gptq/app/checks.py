"""What is wrong with a model folder, as far as its files tell, before anything loads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magr_gptq.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json")
QUANTIZED_TENSORS = (".qweight", ".weight_packed")


def check_model_folder(folder: Path, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> None:
    """Refuse a folder whose weights are absent, incomplete, pickled or quantized, or that brings code.

    Raises:
        InputError: what is wrong, and what to do about it.
    """
    config = _read_json(folder / "config.json")
    if config.get("quantization_config") or any((folder / name).is_file() for name in QUANTIZED_FILES):
        raise _quantized(folder)
    if config.get("auto_map") and not trust_remote_code:
        raise InputError(
            f"{folder} brings its own Python code (auto_map in config.json), which the toolkits would run; "
            "read that code, then give --trust-remote-code, or remove auto_map if transformers knows "
            f"{config.get('model_type')!r} models without it"
        )
    shards = find_shards(folder)
    if not shards:
        _check_pickles(folder, allow_pickle)
    names = {name for shard in shards for name, _ in tensor_shapes(shard)}
    if any(name.endswith(QUANTIZED_TENSORS) for name in names):
        raise _quantized(folder)
    if shards and shards[0].name != SINGLE:
        _require_none_missing(set(_weight_map(folder)) - names, "tensors", folder)


def find_shards(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read: the single one, or those of the index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        _require_none_missing({name for name in names if not (folder / name).is_file()}, "files", folder)
        return [folder / name for name in names]
    if any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has safetensors files, but neither {SINGLE} nor {INDEX}; copy that, too")
    return []


def tensor_shapes(shard: Path) -> Iterator[tuple[str, list[int]]]:
    """Every tensor of a safetensors file by name, with its shape; reads the header only."""
    # the command line starts without it, too
    from safetensors import SafetensorError, safe_open

    try:
        # torch would map the file writable, which needs as much memory as the file is long
        with safe_open(shard, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                yield name, tensors.get_slice(name).get_shape()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{shard} is no complete safetensors file ({error}); copy or download it again "
            "(after git clone, by `git lfs pull`)"
        ) from error


def find_pickles(folder: Path) -> list[Path]:
    """Weights in files that are unpickled to be read."""
    return sorted(file for pattern in PICKLES for file in folder.glob(pattern))


def _check_pickles(folder: Path, allowed: bool) -> None:
    pickles = find_pickles(folder)
    if not pickles:
        raise InputError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}")
    if not allowed:
        raise InputError(
            f"the weights in {folder} are pickled ({pickles[0].name}), and such files can run code when "
            "they are loaded; convert them to safetensors, or give --allow-pickle if you trust their source"
        )


def _weight_map(folder: Path) -> dict[str, str]:
    found: dict[str, str] = _read_json(folder / INDEX).get("weight_map", {})
    if not found:
        raise InputError(f"{folder / INDEX} has no weight_map; copy or download it again")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is no model folder: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); copy or download it again") from error
    return content


def _require_none_missing(missing: set[str], kind: str, folder: Path) -> None:
    if missing:
        raise InputError(
            f"{len(missing)} {kind} that {INDEX} names are missing from {folder}, such as {min(missing)}; "
            "finish copying or downloading the model"
        )


def _quantized(folder: Path) -> InputError:
    return InputError(f"{folder} is quantized already; give the unquantized model")
