"""Tiny random models of families with something special: quantized, and loaded by each loader that may.

A loader that cannot is the fault of its toolkit, as names of tensors do not depend on MagR. The versions are
GPTQModel 7.6.0, optimum 2.3.0 and transformers 5.17.0. What matters is that it is seen, and on no card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_models import SINGLE, save_tiny
from command_line import PROSE, quantize
from forked_workers import fork_processes
from safetensors.torch import load_file

from magr_gptq.app.quantizing.verifying import Loaded

pytestmark = [pytest.mark.long, pytest.mark.environments("modern")]

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 32}
EXPERTS = {**GROUPED, "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 4}
ROUTED = {
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 4,
}
# layers of linear attention, then one of the other kind
MIXED = {
    **WIDE, **ROUTED, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2}
# the kinds of attention differ in their heads
GEMMA4 = {
    **WIDE, "global_head_dim": 64, "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
}  # fmt: skip
# every layer has an embedding of its own
BY_LAYER = {**GEMMA4, "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 257}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
PIXELS = {**VISION, "head_dim": 16, "num_key_value_heads": 2, "position_embedding_size": 16}
SPECIAL = {"vocab_size": 257, **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)}

FUSED = "tensors are not the file's, such as model.layers.0.mlp."


@dataclass(frozen=True)
class Family:
    """sizes: of its config. layers: how many are quantized. faults: what a loader says that can't load it.

    broken: what the toolkit says where it can't quantize the family, with MagR or without.
    """

    sizes: dict[str, Any]
    layers: int
    faults: dict[str, str] = field(default_factory=dict)
    engine: str = "gptqmodel"
    broken: str = ""


FAMILIES = {
    # gate_up_proj is saved as two layers
    "phi3": Family(GROUPED, 10, {"transformers": FUSED + "gate_up_proj"}),
    # experts are saved one by one
    "qwen3_moe": Family({**WIDE, **ROUTED, "num_hidden_layers": 1}, 16, {"transformers": FUSED + "experts"}),
    "mixtral": Family(EXPERTS, 16, {"transformers": FUSED + "experts"}),
    "gpt_oss": Family({**EXPERTS, "head_dim": 32}, 16, {"transformers": FUSED + "experts"}),
    "qwen2": Family({**GROUPED, "tie_word_embeddings": True}, 14),
    "qwen3": Family(WIDE, 14),
    "gemma2": Family(WIDE, 14),
    # GPTQModel changes their configs into such as can't be saved: see test_engines.py
    "gemma3_text": Family(WIDE, 14, engine="transformers"),
    # optimum gives every block the positions of the first, and its first argument alone
    "gemma4_text": Family(
        GEMMA4, 14, engine="transformers", broken="The size of tensor a (64) must match",
    ),
    "gemma4_text with embeddings by layer": Family(
        BY_LAYER, 18, engine="transformers", broken="type(s) for *: 'Tensor' and 'NoneType'",
    ),
    "lfm2": Family({**GROUPED, "layer_types": ["conv", "full_attention"]}, 12),
    "gpt2": Family(GPT2, 8, {"transformers": ""}),
    "opt": Family({**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 64}, 12),
    "starcoder2": Family(GROUPED, 12),
    "llama4_text": Family(
        {**EXPERTS, "intermediate_size_mlp": 64, "head_dim": 32, "interleave_moe_layer_step": 1}, 19,
        {"transformers": "tensors are not the file's, such as model.layers.0.feed_forward.experts"},
    ),
    # transformers takes group indices from memory that nothing has written, so errors differ
    "qwen3_next": Family(MIXED, 36, {"transformers": "it failed: "}),
    "qwen3_5_moe_text": Family(MIXED, 37, {"transformers": "it failed: "}),
    "gpt_bigcode": Family({**GPT2, "n_inner": 64}, 8, {"transformers": ""}),
    # with a vision tower
    "gemma3": Family({"text_config": {**WIDE, **SPECIAL}, "vision_config": VISION}, 14),
    "gemma4": Family({"text_config": {**BY_LAYER, **SPECIAL}, "vision_config": PIXELS}, 18),
}  # fmt: skip
TOWERS = ("gemma3", "gemma4")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)
    # fresh ones: once GPTQModel has loaded a mixture, transformers reads others otherwise
    fork_processes(monkeypatch)


@pytest.mark.parametrize("method", ["--no-magr", "--magr"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_loads_or_the_loader_is_known_to_fail(name: str, method: str, tmp_path) -> None:
    family = FAMILIES[name]
    model = save_tiny(name.partition(" ")[0], tmp_path / "model", **family.sizes)
    small = ("--bits", 4, "--group-size", 32, "--seqlen", 64, "--samples", 8)
    code, output = quantize(model, *small, method, "--engine", family.engine, "--verify")
    if family.broken:
        assert code == 1, output
        assert family.broken in output
        return
    assert code == 0, output
    done = "reduced" if method == "--magr" else "plain"
    assert f"{family.layers} layers: {family.layers} {done}" in output
    for found in json.loads(Path("out", "magr.json").read_text())["loaded"]:
        loaded = Loaded(**found)
        assert loaded.right == (loaded.loader not in family.faults), loaded.says
        assert family.faults.get(loaded.loader, "") in loaded.says
    if name in TOWERS:
        assert_tower_is_left_alone(model, Path("out"))


def assert_tower_is_left_alone(model: Path, out: Path) -> None:
    """Every tensor of the tower is in the checkpoint as it was."""
    before, after = tower(model), tower(out)
    assert before
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def tower(folder: Path) -> dict[str, torch.Tensor]:
    """By name, before which GPTQModel puts the name of the module that holds all."""
    found = load_file(folder / SINGLE)
    return {name.removeprefix("model."): found[name] for name in found if "vision" in name}
