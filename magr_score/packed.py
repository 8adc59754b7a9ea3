"""The weights that a checkpoint's files hold, read by their formats' definitions and by no toolkit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

GPTQ = ("qweight", "qzeros", "scales", "g_idx")
COMPRESSED = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")


@dataclass(frozen=True)
class Grid:
    """A packed weight taken apart. codes: q − z [out, in]. scales: [out, groups]. group: of each column."""

    codes: Tensor
    scales: Tensor
    group: Tensor

    @property
    def weight(self) -> Tensor:
        """w = s·(q − z), [out, in]."""
        found: Tensor = self.scales[:, self.group] * self.codes
        return found


def tensors(folder: str) -> dict[str, Tensor]:
    """Every tensor by the name that the unquantized model has for it; packed ones as weights, in float32.

    Raises:
        ValueError: config.json names a format that is not known here.
    """
    saved = dict(_saved(Path(folder)))
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["quantization_config"]
    if config["quant_method"] == "gptq":
        return _merged(saved, GPTQ, "qweight", lambda part: gptq_weight(part, config))
    if config["quant_method"] == "compressed-tensors":
        return _merged(saved, COMPRESSED, "weight_packed", lambda part: compressed_weight(part, config))
    raise ValueError(f"{folder} has quant_method={config['quant_method']!r}, not gptq or compressed-tensors")


def unpacked(words: Tensor, bits: int) -> Tensor:
    """The codes of each row of int32 words [rows, words], code i in bits i·b … i·b + b − 1: [rows, codes]."""
    ones = ((words[..., None] >> torch.arange(32)) & 1).to(torch.uint8)
    stream = ones.flatten(1)
    whole = stream[:, : stream.shape[1] // bits * bits].reshape(len(stream), -1, bits)
    codes: Tensor = (whole << torch.arange(bits, dtype=torch.uint8)).sum(-1)
    return codes


def gptq_weight(part: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """w = s·(q − z), [out, in], see `gptq_grid`."""
    return gptq_grid(part, config).weight


def gptq_grid(part: dict[str, Tensor], config: dict[str, Any]) -> Grid:
    """What a layer's tensors hold: qweight packs columns, qzeros rows, and format `gptq` has z − 1."""
    group, scales = part["g_idx"].long(), part["scales"].T.float()
    # not the config's, as single layers may have others
    bits = 32 * len(part["qweight"]) // len(group)
    codes = unpacked(part["qweight"].T.contiguous(), bits)
    stated = config.get("checkpoint_format") or config.get("format") or "gptq"
    words = part["qzeros"]
    zeros = (one_more(words, bits) if stated == "gptq" else unpacked(words, bits)).T[: len(scales)]
    return Grid(codes - zeros[:, group], scales, group)


def one_more(words: Tensor, bits: int) -> Tensor:
    """The codes plus 1, as GPTQModel reads them: unless codes straddle words, 0 − 1 borrowed from the next.

    Readers that add 1 to each code by itself get such neighbours wrong.
    """
    if 32 % bits:
        return torch.remainder(unpacked(words, bits) + 1, 2**bits)
    ones = sum(1 << place for place in range(0, 32, bits))
    more: Tensor = words.long() + ones
    return unpacked(more.to(torch.int32), bits)


def compressed_weight(part: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """w = s·(q − z), [out, in], see `compressed_grid`."""
    return compressed_grid(part, config).weight


def compressed_grid(part: dict[str, Tensor], config: dict[str, Any]) -> Grid:
    """What the tensors of a layer hold; signed codes q and z are stored with 2ᵇ⁻¹ added."""
    rows, columns = part["weight_shape"].tolist()
    bits = _width(config, part["weight_packed"].shape[1], columns)
    codes = unpacked(part["weight_packed"], bits)[:, :columns] - 2 ** (bits - 1)
    scales = part["weight_scale"].float()
    zeros = torch.zeros_like(scales, dtype=codes.dtype)
    if "weight_zero_point" in part:
        zeros = unpacked(part["weight_zero_point"].T.contiguous(), bits).T[:rows] - 2 ** (bits - 1)
    of_column = torch.arange(columns) // (columns // scales.shape[1])
    return Grid(codes - zeros[:, of_column], scales, of_column)


def _width(config: dict[str, Any], words: int, columns: int) -> int:
    """Of the config's widths, the one at which so many columns take so many words a row."""
    widths = {group["weights"]["num_bits"] for group in config["config_groups"].values()}
    (found,) = (bits for bits in widths if words in (-(-columns * bits // 32), -(-columns // 32) * bits))
    return int(found)


def _saved(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as found:
            for name in found.keys():  # noqa: SIM118 (no dict)
                yield name, found.get_tensor(name)


def _merged(
    saved: dict[str, Tensor],
    parts: tuple[str, ...],
    packed: str,
    weight: Callable[[dict[str, Tensor]], Tensor],
) -> dict[str, Tensor]:
    """The tensors with one weight in place of the parts of every layer that has a packed one."""
    layers = [name.removesuffix(f".{packed}") for name in saved if name.endswith(f".{packed}")]
    found = dict(saved)
    for layer in layers:
        part = {name: found.pop(f"{layer}.{name}") for name in parts if f"{layer}.{name}" in found}
        found[f"{layer}.weight"] = weight(part)
    return found
