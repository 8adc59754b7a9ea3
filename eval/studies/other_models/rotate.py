"""Rotate a Llama's residual stream and its values by Hadamard matrices, without changing what it computes.

    python -m eval.studies.other_models.rotate MODEL OUT

Norms are folded into the projections that read them, then every weight is multiplied by an orthogonal matrix
where another undoes it: R = diag(±1)·Hadamard/√n on all that the residual stream is read or written by, and a
Hadamard matrix within every head between v_proj and o_proj. So outliers are spread over all columns. That is
the part of QuaRot's rotation (Ashkboos et al., 2024, arXiv 2404.00456) which costs nothing at inference;
GPTQModel's `rotation` also rotates the input of every down_proj, which the model must then do, too. Folding
the last norm needs a head of its own, where the model's is tied to the embedding.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def hadamard(size: int) -> Tensor:
    """Sylvester's matrix, scaled to be orthogonal: [size, size], float64.

    Raises:
        ValueError: the size is no power of two.
    """
    if size & (size - 1):
        raise ValueError(f"Sylvester's Hadamard matrices have a power of two of columns, not {size}")
    matrix, step = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(matrix) < size:
        matrix = torch.kron(matrix, step.double())
    return matrix / size**0.5


def random_rotation(size: int, seed: int) -> Tensor:
    """diag(±1) times `hadamard`, with random signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (size, 1), generator=generator) * 2 - 1
    return signs * hadamard(size)


@torch.no_grad()
def rotate(model: PreTrainedModel, seed: int) -> None:
    """In place; the model's outputs stay as they are, up to rounding."""
    config, decoder = model.config, model.model
    config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    stream = random_rotation(config.hidden_size, seed)
    fold(decoder.norm, [model.lm_head])
    for reader in (decoder.embed_tokens, model.lm_head):
        turn_inputs(reader, stream)
    for block in decoder.layers:
        attention, mlp = block.self_attn, block.mlp
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        fold(block.input_layernorm, readers)
        fold(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        for reader in (*readers, mlp.gate_proj, mlp.up_proj):
            turn_inputs(reader, stream)
        for writer in (attention.o_proj, mlp.down_proj):
            turn_outputs(writer, stream)
        head = hadamard(attention.head_dim)
        turn_outputs(attention.v_proj, block_diagonal(head, config.num_key_value_heads))
        turn_inputs(attention.o_proj, block_diagonal(head, config.num_attention_heads))


def fold(norm: nn.Module, readers: Iterable[nn.Module]) -> None:
    """The norm's weight goes into the columns of those that read it."""
    for reader in readers:
        reader.weight *= norm.weight
    norm.weight.fill_(1)


def turn_inputs(layer: nn.Module, rotation: Tensor) -> None:
    """W·R: rows of an embedding, columns of a projection."""
    layer.weight.copy_(layer.weight.double() @ rotation)


def turn_outputs(layer: nn.Module, rotation: Tensor) -> None:
    """Rᵀ·W, and Rᵀ·b where there is a bias."""
    layer.weight.copy_(rotation.T @ layer.weight.double())
    if layer.bias is not None:
        layer.bias.copy_(rotation.T @ layer.bias.double())


def block_diagonal(matrix: Tensor, count: int) -> Tensor:
    """The matrix, so many times."""
    return torch.block_diag(*[matrix] * count)


def main() -> None:
    """Rotate a model folder into another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rotate(model, args.seed)
    model.save_pretrained(args.out)
    AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)


if __name__ == "__main__":
    main()
