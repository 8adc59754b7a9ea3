"""The Hessians of a transformers model's linear layers, from forward passes that change nothing in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from magr_gptq.reduction.hessian import gram_matrix

Linear = nn.Linear | Conv1D
Layers = dict[str, Linear]

# [experts, out, in]
EXPERTS_NDIM = 3
# of the Hessians that one turn of forward passes accumulates
TURN_BYTES = 8 * 2**30


@dataclass(frozen=True)
class LayerInput:
    """What the layers of these names are all given: H = XᵀX, [in, in] float32, with X of so many tokens."""

    names: tuple[str, ...]
    hessian: Tensor
    tokens: int


def linear_layers(model: PreTrainedModel) -> Layers:
    """The linear layers below the head, by the names that they have in the whole model."""
    below_head = set(model.base_model.modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module in below_head
    }


def fused_experts(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Shapes [out, in] of the experts' layers that the model holds in one weight for all experts, by name.

    The names are those of toolkits, which take the weights apart; `gate_up_proj` is two layers an expert.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, weight in model.named_parameters():
        place, _, own = name.rpartition(".")
        if weight.ndim != EXPERTS_NDIM or not own.endswith("proj"):
            continue
        parts = ("gate_proj", "up_proj") if own == "gate_up_proj" else (own,)
        transposed = getattr(model.get_submodule(place), "is_transposed", False)
        rows, columns = reversed(weight.shape[1:]) if transposed else weight.shape[1:]
        for expert in range(len(weight)):
            found |= {f"{place}.{expert}.{part}": (rows // len(parts), columns) for part in parts}
    return found


def matrix_of(layer: Linear) -> Tensor:
    """The weight as [out, in]; GPT-2's Conv1D stores [in, out]."""
    weight: Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def in_turns(layers: Layers, limit: int = TURN_BYTES) -> Iterator[Layers]:
    """The layers in portions whose Hessians fit into so many bytes, one layer at least."""
    turn: Layers = {}
    used = 0
    for name, layer in layers.items():
        size = 4 * matrix_of(layer).shape[1] ** 2
        if turn and used + size > limit:
            yield turn
            turn, used = {}, 0
        turn[name] = layer
        used += size
    if turn:
        yield turn


@torch.no_grad()
def layer_inputs(
    model: PreTrainedModel,
    layers: Layers,
    batches: Iterable[Tensor],
    advance: Callable[[], None],
    run: Callable[[Tensor], None] | None = None,
) -> list[LayerInput]:
    """Run the batches of token ids [rows, tokens] through the model, and see what the layers are given.

    Layers that always get the very same tensor (q, k, v; gate, up) come back as one LayerInput.
    Layers that no token reached are left out. `advance` is called after every batch. `run` takes a batch
    through the model where more than its forward pass is wanted.
    """
    seen = _Inputs()
    handles = [layer.register_forward_pre_hook(partial(seen.arrive, name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            batch = batch.to(model.device)
            run(batch) if run else model.base_model(input_ids=batch, use_cache=False)
            seen.close()
            advance()
    finally:
        for handle in handles:
            handle.remove()
    return seen.by_layer()


class _Inputs:
    """XᵀX of every input tensor, summed over those that went to the same set of layers."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._tokens: dict[tuple[str, ...], int] = defaultdict(int)
        self._latest: Tensor | None = None
        self._names: list[str] = []

    def arrive(self, name: str, _module: nn.Module, arguments: tuple[Tensor]) -> None:
        """The pre-hook: the layer of this name is about to be given its input."""
        if arguments[0] is not self._latest:
            self.close()
            self._latest = arguments[0]
            rows = self._latest.detach().flatten(0, -2).float()
            # now, and not in `close`: the model may overwrite the tensor later
            self._product = gram_matrix(rows)
        self._names.append(name)

    def close(self) -> None:
        """Book the latest input under the layers that got it."""
        if self._latest is None:
            return
        key = tuple(self._names)
        self._tokens[key] += self._latest[..., 0].numel()
        if key in self._sums:
            self._sums[key] += self._product
        else:
            self._sums[key] = self._product
        self._latest = None
        self._names = []

    def by_layer(self) -> list[LayerInput]:
        """One entry for layers that were always given the same; a layer's sums are added up."""
        alike: dict[tuple[tuple[str, ...], ...], list[str]] = defaultdict(list)
        for name in dict.fromkeys(name for key in self._sums for name in key):
            alike[tuple(key for key in self._sums if name in key)].append(name)
        return [
            LayerInput(tuple(names), self._total(keys), sum(self._tokens[key] for key in keys))
            for keys, names in alike.items()
        ]

    def _total(self, keys: tuple[tuple[str, ...], ...]) -> Tensor:
        first, *others = (self._sums[key] for key in keys)
        return torch.stack([first, *others]).sum(0) if others else first
