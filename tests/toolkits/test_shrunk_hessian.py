"""The regularised Hessian of every toolkit's own loop is that of a float64 computation from stored inputs."""

from __future__ import annotations

import pytest
import torch
from four_roads import ROADS, given_to
from seams import layers_given
from tiny import save_tiny_model

import magr_gptq
from magr_gptq.config import MagRConfig
from magr_gptq.reduction.shrinkage import shrinkage
from magr_gptq.toolkits import installed, layer_step

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def inputs(model: str) -> torch.Tensor:
    return given_to(model, LAYER)


def share_of(tokens: torch.Tensor) -> float:
    """ρ from the correlations of stored inputs."""
    unit = tokens / tokens.norm(dim=0)
    squares = (unit.T @ unit).square()[~torch.eye(tokens.shape[1], dtype=torch.bool)]
    return min(1.0, float((1 + squares).sum() / len(tokens) / squares.sum()))


@pytest.mark.parametrize("road", [road for road in ROADS if road in installed()])
def test_share_and_tokens_are_those_of_the_stored_inputs(road: str, model: str, inputs, monkeypatch) -> None:
    # without the unquantized chain there are no halves, and the number of tokens must do
    monkeypatch.setattr(MagRConfig, "aims_at_model", property(lambda _: False))
    seen = layers_given(monkeypatch)
    hessians = []
    real = layer_step.shrinkage
    monkeypatch.setattr(
        layer_step, "shrinkage", lambda h, m: hessians.append((h.double().clone(), m)) or real(h, m)
    )
    if road == "llm-compressor":
        # its modules go together where they can
        real_together = layer_step.quantize_together
        monkeypatch.setattr(
            "magr_gptq.toolkits.llmcompressor.modifier.quantize_together",
            lambda given, round_all: seen.extend(given) or real_together(given, round_all),
        )
    with magr_gptq.enabled(road):
        ROADS[road](model)
    # q, k and v, the first to be rounded, have the same input
    hessian, tokens = hessians[0]
    assert tokens == len(inputs)
    exact = inputs.T @ inputs
    torch.testing.assert_close(
        hessian / hessian.diagonal().mean(), exact / exact.diagonal().mean(), rtol=1e-4, atol=1e-4
    )
    assert float(shrinkage(hessian, tokens)) == pytest.approx(share_of(inputs), rel=1e-3)
    assert all(given.tokens for given in seen)
