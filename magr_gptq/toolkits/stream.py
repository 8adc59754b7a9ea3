"""How a block is made, seen from one batch: what writes into the stream, comes last, mixes tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

LAYERS = (torch.nn.Linear, Conv1D)
# a name that no child of a block has: the block itself, whose input is the stream
BLOCK = ""


@dataclass(frozen=True)
class Layout:
    """Of a block, by names in it.

    writers: the layers whose output is added to the stream as it is, with the child that takes the stream
        before. last: the layer that each child with layers inside calls last, and that the block does.
    returned: of those the ones whose output their child returns as it is.
    mixing: the children with layers inside that are given more than the stream, such as a mask: attention.
    """

    writers: Mapping[str, str]
    last: Mapping[str, str]
    returned: frozenset[str]
    mixing: frozenset[str]


def layout_of(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout:
    """Run a batch through the block and look on.

    A block hands its stream to its children, such as norms, and returns it. Where the stream at one place is
    the stream at an earlier one plus a layer's output, to the bit, the layer has written it. A norm or a
    factor in between leaves the layer out.

    Args:
        args, kwargs: of the block; the hidden state comes first.
    """
    states: list[tuple[str, Tensor]] = [(BLOCK, args[0])]
    outputs: dict[str, Tensor] = {}
    of_children: dict[str, Any] = {}
    given_more: set[str] = set()

    def keep_state(name: str, _module: Any, given: tuple[Any, ...], more: dict[str, Any]) -> None:
        if given and isinstance(given[0], Tensor):
            states.append((name, given[0]))
        if len(given) + len(more) > 1:
            given_more.add(name)

    def keep_returned(name: str, _module: Any, _given: Any, returned: Any) -> None:
        of_children[name] = first_of(returned)

    def keep_output(name: str, _module: Any, _given: Any, output: Any) -> None:
        # Llama-4's router is a linear layer that returns scores and logits
        if isinstance(output, Tensor):
            outputs[name] = output

    children = list(block.named_children())
    layers = [pair for pair in block.named_modules() if isinstance(pair[1], LAYERS)]
    handles = [
        *(c.register_forward_pre_hook(partial(keep_state, name), with_kwargs=True) for name, c in children),
        *(c.register_forward_hook(partial(keep_returned, name)) for name, c in children),
        *(layer.register_forward_hook(partial(keep_output, name)) for name, layer in layers),
    ]
    try:
        end = block(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    states.append((BLOCK, first_of(end)))
    last = _last(outputs)
    returned = frozenset(name for child, name in last.items() if of_children.get(child) is outputs[name])
    return Layout(_writers(states, outputs), last, returned, frozenset(given_more & last.keys()))


def _writers(states: list[tuple[str, Tensor]], outputs: Mapping[str, Tensor]) -> dict[str, str]:
    # the last one stays: where an output is lost in a loud stream's rounding, the earliest place is right
    pairs = list(combinations(states, 2))[::-1]
    return {
        name: place
        for name, output in outputs.items()
        for (place, before), (_, after) in pairs
        if _is_sum(before, output, after)
    }


def _last(called: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in called:
        child, _, inside = name.partition(".")
        found[BLOCK] = name
        if inside:
            found[child] = name
    return found


def _is_sum(before: Tensor, output: Tensor, after: Tensor) -> bool:
    return output.shape == before.shape == after.shape and torch.equal(before + output, after)


def first_of(returned: Any) -> Tensor:
    """The hidden state that a block returns, alone or before other things."""
    state: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return state
