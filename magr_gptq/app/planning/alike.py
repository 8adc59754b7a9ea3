"""Layers that runtimes run as one, so that they must have one width, and the names that they go by there.

vLLM and sglang fuse q, k and v, gate and up, and all experts of a mixture. They look a width up by the fused
name alone (vLLM's `gptq_utils.override_config`, read in its sources), which no checkpoint has. GPTQModel and
transformers run each layer by itself. Experts are alike everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
         "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}  # fmt: skip
EXPERTS = "experts"


def fused_name(layer: str) -> str:
    """The name by which a runtime that fuses knows the layer; the layer's own where nothing is fused."""
    parts = layer.split(".")
    if EXPERTS in parts:
        return ".".join(parts[: parts.index(EXPERTS) + 1])
    return ".".join([*parts[:-1], FUSED.get(parts[-1], parts[-1])])


def by_fused_name(layers: Iterable[str], fuses: bool = True) -> dict[str, list[str]]:
    """The layers that must be alike, by their common name, in a runtime that fuses layers or in another."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        together = fuses or EXPERTS in layer.split(".")
        found.setdefault(fused_name(layer) if together else layer, []).append(layer)
    return found


def head_among(layers: Iterable[str]) -> str | None:
    """The output layer, which is in no numbered block; None where all layers are in one."""
    return next((name for name in layers if not any(map(str.isdigit, name.split(".")))), None)


def pattern(fused: str, layers: Sequence[str]) -> str:
    """A regular expression that matches these layers and their fused name in full, and nothing else."""
    if fused.split(".")[-1] == EXPERTS:
        return rf"^{re.escape(fused)}(?:\..+)?$"
    names = dict.fromkeys([*layers, fused])
    if len(names) == 1:
        return f"^{re.escape(fused)}$"
    place, own = fused.rpartition(".")[0], "|".join(re.escape(name.rpartition(".")[2]) for name in names)
    return rf"^{re.escape(place)}\.(?:{own})$"
