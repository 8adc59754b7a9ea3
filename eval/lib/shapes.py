"""The linear layers of published models, block by block, by the input that they share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Input:
    """Layers that share one input, hence one Hessian [columns, columns].

    columns: width of the input.
    rows: outputs of each layer that reads it.
    count: how many such inputs there are.
    share: of all tokens, how many such an input sees on average.
    """

    columns: int
    rows: tuple[int, ...]
    count: int = 1
    share: float = 1.0


@dataclass(frozen=True)
class Blocks:
    """`count` equal blocks of a model, and the inputs within one."""

    count: int
    inputs: tuple[Input, ...]


def llama(blocks: int, hidden: int, intermediate: int, keys: int) -> list[Blocks]:
    """q, k, v; o; gate, up; down. keys: width of keys and of values."""
    return [
        Blocks(
            blocks,
            (
                Input(hidden, (hidden, keys, keys)),
                Input(hidden, (hidden,)),
                Input(hidden, (intermediate, intermediate)),
                Input(intermediate, (hidden,)),
            ),
        )
    ]


def mixture_671b() -> list[Blocks]:
    """DeepSeek-V3: latent attention; 3 blocks with a dense MLP, 58 with 256 routed experts and a shared one.

    A token goes to 8 routed experts and the shared one, and each expert has Hessians of its own.
    """
    hidden, expert, dense = 7168, 2048, 18432
    attention = (
        Input(hidden, (1536, 576)),  # down-projections of queries, and of keys and values
        Input(1536, (24576,)),
        Input(512, (32768,)),
        Input(16384, (hidden,)),
    )
    share = (8 + 1) / 257
    experts = (Input(hidden, (expert, expert), 257, share), Input(expert, (hidden,), 257, share))
    return [
        Blocks(3, (*attention, Input(hidden, (dense, dense)), Input(dense, (hidden,)))),
        Blocks(58, attention + experts),
    ]


MODELS = {
    "llama2-7b": llama(32, 4096, 11008, 4096),
    "llama2-13b": llama(40, 5120, 13824, 5120),
    "llama2-70b": llama(80, 8192, 28672, 1024),
    "llama3-8b": llama(32, 4096, 14336, 1024),
    "llama3-405b": llama(126, 16384, 53248, 1024),
    "mixture-671b": mixture_671b(),
}


def inputs_of(model: str) -> list[Input]:
    """All inputs of a model, counted over its blocks."""
    return [
        replace(shared, count=shared.count * blocks.count)
        for blocks in MODELS[model]
        for shared in blocks.inputs
    ]


def layer_counts(model: str) -> Counter[tuple[int, int]]:
    """How many layers a model has of each shape (rows, columns)."""
    counts: Counter[tuple[int, int]] = Counter()
    for shared in inputs_of(model):
        for rows in shared.rows:
            counts[rows, shared.columns] += shared.count
    return counts
