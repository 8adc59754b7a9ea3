"""Tiny random models of families with something special: quantized, and loaded by each loader that may.

A loader that cannot is the fault of its toolkit, as names of tensors do not depend on MagR. The versions are
GPTQModel 7.6.0, optimum 2.3.0 and transformers 5.17.0. What matters is that it is seen, and on no card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_models import save_tiny
from command_line import PROSE, quantize

from magr_gptq.app.quantizing.verifying import Loaded

pytestmark = [pytest.mark.long, pytest.mark.environments("modern")]

SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZES, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 4}
ROUTED = {
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 4,
}
# layers of linear attention, then one of the other kind
MIXED = {
    **GROUPED, **ROUTED, "head_dim": 32, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2}

FUSED = "tensors are not the file's, such as model.layers.0.mlp."
# by family: its sizes, how many layers are quantized, and what loaders say that can't load it
FAMILIES: dict[str, tuple[dict[str, Any], int, dict[str, str]]] = {
    # gate_up_proj is saved as two layers
    "phi3": (GROUPED, 10, {"transformers": FUSED + "gate_up_proj"}),
    # experts are saved one by one
    "qwen3_moe": (
        {**GROUPED, "moe_intermediate_size": 64, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 4},
        32, {"transformers": FUSED + "experts"},
    ),
    "mixtral": (EXPERTS, 32, {"transformers": FUSED + "experts"}),
    "gpt_oss": ({**EXPERTS, "head_dim": 32}, 32, {"transformers": FUSED + "experts"}),
    "qwen2": ({**GROUPED, "tie_word_embeddings": True}, 14, {}),
    "gemma2": ({**GROUPED, "head_dim": 32}, 14, {}),
    "lfm2": ({**GROUPED, "layer_types": ["conv", "full_attention"]}, 12, {}),
    "gpt2": (GPT2, 8, {"transformers": ""}),
    "llama4_text": (
        {**EXPERTS, "intermediate_size_mlp": 64, "head_dim": 32, "interleave_moe_layer_step": 1},
        38, {"transformers": "tensors are not the file's, such as model.layers.0.feed_forward.experts"},
    ),
    # transformers takes group indices from memory that nothing has written
    "qwen3_next": (MIXED, 36, {"transformers": "it failed: IndexError: index"}),
    "qwen3_5_moe_text": (MIXED, 37, {"transformers": "it failed: IndexError: index"}),
    "gpt_bigcode": ({**GPT2, "n_inner": 64}, 8, {"transformers": ""}),
}  # fmt: skip


@pytest.mark.parametrize("method", ["--no-magr", "--magr"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loads_or_the_loader_is_known_to_fail(
    family: str, method: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prose.txt").write_text(PROSE)
    sizes, layers, faults = FAMILIES[family]
    model = save_tiny(family, tmp_path / "model", **sizes)
    small = ("--bits", 4, "--group-size", 32, "--seqlen", 64, "--samples", 8)
    code, output = quantize(model, *small, method, "--verify")
    assert code == 0, output
    done = "reduced" if method == "--magr" else "plain"
    assert f"{layers} layers: {layers} {done}" in output
    # in processes of their own: once GPTQModel has loaded a mixture, transformers reads others otherwise
    for found in json.loads(Path("out", "magr.json").read_text())["loaded"]:
        loaded = Loaded(**found)
        assert loaded.right == (loaded.loader not in faults), loaded.says
        assert faults.get(loaded.loader, "") in loaded.says
