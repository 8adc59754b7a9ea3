"""Model folders with one thing wrong, made from a good one; tiny models of unusual kinds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import _rewrite, byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"
# what code from a model folder leaves behind once it has run
EXECUTED = "code-from-the-model-ran"


def as_it_is(_: Any) -> None:
    """Nothing wrong."""


def broken(good: Path, folder: Path, spoil: Callable[[Path], Any]) -> Path:
    """A copy of `good` after `spoil`."""
    shutil.copytree(good, folder)
    spoil(folder)
    return folder


def shard(folder: Path) -> None:
    """Two files and their index, all of it complete."""
    weights = load_file(folder / SINGLE)
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / SINGLE).unlink()
    found = {name: file for file, part in halves.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": found}))


def to_pickle(folder: Path) -> None:
    """The same weights as transformers saved them before safetensors."""
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def truncate(file: Path) -> None:
    """The first half of the file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_tensor(folder: Path) -> None:
    """One weight fewer, in a file that is complete by itself."""
    weights = load_file(folder / SINGLE)
    del weights[UP]
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def lose_shard(folder: Path) -> None:
    """An index that names a file which never arrived."""
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def lose_indexed_tensor(folder: Path) -> None:
    """A shard without a tensor that the index has in it."""
    shard(folder)
    (file,) = folder.glob("model-00001*")
    weights = load_file(file)
    weights.popitem()
    save_file(weights, file, metadata={"format": "pt"})


def bring_code(folder: Path) -> None:
    """Code that leaves a trace in the working directory and next to itself."""
    trace = str(folder.parent / EXECUTED)
    (folder / "own.py").write_text(
        f"open({trace!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig): pass\nclass M(LlamaForCausalLM): pass\n"
    )
    _rewrite(folder / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})


def sparse_giant(folder: Path, size: int) -> None:
    """A complete file of `size` bytes that takes no room on the disk."""
    rows = size // 2048
    entry = {"dtype": "F16", "shape": [rows, 1024], "data_offsets": [0, rows * 2048]}
    header = json.dumps({UP: entry}).encode()
    header += b" " * (-len(header) % 8)
    with (folder / SINGLE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 2048)


def save_tiny(
    kind: str, folder: Path, prepare: Callable[[Any], Any] = as_it_is, dtype: str = "float16", **shape: Any
) -> Path:
    """A model of any kind, in 16 bits, with a byte tokenizer."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **shape)
    model = AutoModelForCausalLM.from_config(config)
    prepare(model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "config.json", torch_dtype=dtype)
    _rewrite(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def save_mixture(folder: Path) -> Path:
    """A Mixtral with four experts, of which two never get a token: 6 of 16 layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return save_tiny(
        "mixtral", folder, _starve, **sizes,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1,
    )  # fmt: skip


def _starve(model: Any) -> None:
    (router,) = (weight for name, weight in model.named_parameters() if name.endswith(".gate.weight"))
    router.data[1:] = 0
    router.data[1] = -router.data[0]
