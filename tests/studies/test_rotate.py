"""The rotation of a Llama leaves what it computes, and spreads its outliers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eval.studies.other_models.rotate import hadamard, random_rotation, rotate

pytestmark = pytest.mark.environments("modern", "autogptq")


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    for name, parameter in model.named_parameters():
        # norms of one and biases of zero would hide a mistake
        if "norm" in name or "bias" in name:
            parameter.data.uniform_(0.5, 2)
    return model


def test_model_computes_what_it_did():
    model, tokens = tiny_llama(), torch.arange(24).view(1, -1)
    with torch.no_grad():
        expected = model(tokens).logits
        rotate(model, seed=0)
        found = model(tokens).logits
    # Llama's norms and softmax round to float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_planted_outlier_is_spread():
    model = tiny_llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[:, 3] *= 100
    before = float(weight.detach().abs().amax() / weight.detach().std())
    rotate(model, seed=0)
    assert float(weight.detach().abs().amax() / weight.detach().std()) < before / 3


@pytest.mark.parametrize("size", [1, 2, 64])
def test_hadamard_is_orthogonal(size):
    for matrix in (hadamard(size), random_rotation(size, seed=1)):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="not 48"):
        hadamard(48)
