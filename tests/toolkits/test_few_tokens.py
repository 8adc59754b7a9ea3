"""A mixture's experts that few tokens reach: on tokens that neither saw, none is worse than by plain GPTQ."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import magr_gptq

pytest.importorskip("gptqmodel")

from eval.lib.fidelity import CONTEXT
from eval.studies.experts.run import inputs, rounded, routed
from magr_gptq.app.cli.demo import shipped_model, shipped_text
from magr_score.windows import TOKENIZER, cut_windows, tokenize

ROWS = 64


@pytest.fixture(scope="module")
def sides() -> list[dict]:
    """What the first block's layers are given, in the calibration text and in the other."""
    model = AutoModelForCausalLM.from_pretrained(shipped_model(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(shipped_model())
    found = []
    for text, limit in (("calibration.txt", 64), ("evaluation.txt", 32)):
        beginning, tokens = tokenize(tokenizer, shipped_text(text).read_text(encoding="utf-8"), TOKENIZER)
        found.append(inputs(model, cut_windows(tokens, CONTEXT, limit, beginning), (0,)))
    found[0]["weights"] = {
        name: getattr(model.model.layers[0].mlp, name).weight.detach()[:ROWS]
        for name in ("up_proj", "down_proj")
    }
    return found


@pytest.mark.parametrize("tokens", [16, 50, 256])
@pytest.mark.parametrize("layer", ["up_proj", "down_proj"])
def test_no_expert_is_worse_than_by_plain_gptq(layer: str, tokens: int, sides) -> None:
    weight = sides[0]["weights"][layer]
    seen, held_out = (side[0, layer][routed(side[0, "up_proj"]) == 0] for side in sides)

    def error(bits: int, magr: bool) -> float:
        away = weight - rounded(weight, seen[:tokens], bits, 64, magr)[0]
        return float((held_out @ away.T).square().sum())

    with magr_gptq.enabled("gptqmodel"):
        ratios = {bits: error(bits, True) / error(bits, False) for bits in (4, 3, 2)}
    assert max(ratios.values()) < 1, ratios
