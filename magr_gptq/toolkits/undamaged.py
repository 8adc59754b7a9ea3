"""The unquantized model's way through the calibration batches, one block beside the toolkit's.

A toolkit keeps what enters a block once all earlier ones are quantized. Here what enters it in the
unquantized model is kept as well, and a copy of the block from before its first layer was rounded. Whenever
the toolkit runs a batch through the block, the copy has run it first: so what a layer is given in both chains
is in memory together, for one batch at a time. That costs one more block and one more hidden state a token.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from magr_gptq.reduction.target import Half
from magr_gptq.toolkits.stream import BLOCK, find_writers, first_of


class Pairs:
    """What a layer's inputs in both chains add up to, in two halves of the calibration documents.

    Batches may come from several threads and devices; the sums lie where the first of them lay.
    """

    def __init__(self) -> None:
        self._halves: dict[int, Half] = {}
        self._lock = threading.Lock()

    @property
    def halves(self) -> list[Half] | None:
        """Those that any document fell into, two or one; None where nothing was paired."""
        return list(self._halves.values()) or None

    def add(self, number: int, document: Sequence[Tensor]) -> None:
        """Count a document of this number in: what `Half.of` takes, [tokens, features] each."""
        if number:
            self._add(number % 2, Half.of(*document))
            return
        # the first is cut in two, so that a single document makes two halves as well
        middle = len(document[0]) // 2
        self._add(0, Half.of(*(part[:middle] for part in document)))
        self._add(1, Half.of(*(part[middle:] for part in document)))

    def sum_up(self, reduce: Callable[[Tensor], Any]) -> None:
        """Replace all sums by those of several processes, which `reduce` sums up in place."""
        for number in sorted(self._halves):
            half = self._halves[number]
            tokens = half.gram.new_tensor(half.tokens, dtype=torch.int64)
            for sums in (half.gram, half.cross, half.stream, tokens):
                if sums is not None:
                    reduce(sums)
            half.tokens = int(tokens)

    def _add(self, half: int, some: Half) -> None:
        with self._lock:
            held = self._halves.get(half)
            self._halves[half] = some if held is None else held.add_(some.to(held.gram.device))


class _Enough(Exception):  # noqa: N818 - it is no error
    """All inputs that were wanted are there; the rest of the block need not run."""


class _Here(threading.local):
    """One thread's batch: its number, and what was seen of it by name, in both chains."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, number: int) -> None:
        self.number = number
        self.inputs: dict[str, Tensor] = {}
        self.stream: dict[str, Tensor] = {}
        self.damaged_stream: dict[str, Tensor] = {}


class UndamagedChain:
    """The unquantized chain of one run, which an adapter leads along the toolkit's passes.

    `open` a pass over all batches through a block; `run` before the toolkit runs each; `pair` in the hooks by
    which it takes a layer's inputs; `close` after the pass.

    states: what enters the next block, by the number of the batch; all that is kept from block to block.
    """

    def __init__(self) -> None:
        self._block: torch.nn.Module | None = None
        self._copies: dict[torch.device, torch.nn.Module] = {}
        self._writers: dict[str, str] | None = None
        self.states: dict[int, Tensor] = {}
        self._wanted: frozenset[str] = frozenset()
        self._last = True
        self._handles: list[Any] = []
        self._here = _Here()
        self._lock = threading.Lock()

    def open(self, block: torch.nn.Module, wanted: Collection[str]) -> None:
        """Begin a pass: of the layers of these names in the block inputs are wanted.

        None are wanted in the last pass through a block, which gives the next block's inputs.
        """
        if block is not self._block:
            self._block, self._copies, self._writers = block, {}, None
            self._copies[_device_of(block)] = _without_hooks(copy.deepcopy(block))
        self._last = not wanted
        # a mixture's experts get other tokens in each chain
        self._wanted = frozenset(name for name in wanted if not any(p.isdigit() for p in name.split(".")))
        self._handles = [
            child.register_forward_pre_hook(self._keep_damaged_stream(name))
            for name, child in block.named_children()
            if self._wanted
        ]

    def run(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any], home: Any = None) -> None:
        """Run the block's original on a batch; the toolkit runs the block next, in the same thread.

        Args:
            number: of the batch. args, kwargs: of the block, where the toolkit's hidden state comes first.
            home: the device where a hidden state is kept; None is where the batch is run.
        """
        if not (self._wanted or self._last):
            return
        damaged, rest = args[0], args[1:]
        # nothing is damaged before the first block
        state = self.states.get(number, damaged).to(damaged.device)
        with torch.no_grad():
            original = self._original((state, *rest), kwargs)
            self._here.start(number)
            self._here.stream[BLOCK], self._here.damaged_stream[BLOCK] = state, damaged
            try:
                output = first_of(original(state, *rest, **kwargs))
            except _Enough:
                return
        if self._last:
            self.states[number] = output.to(home or output.device)

    def pair(self, name: str, pairs: Pairs, damaged: Tensor, kept: Tensor | None = None) -> None:
        """Count the batch in hand in: what a layer of this name is given in both chains.

        Args:
            damaged: what the toolkit gives it, [documents, tokens, in].
            kept: [documents, tokens], false where a token is padding; None where none is.
        """
        undamaged = self._here.inputs.pop(name, None)
        if undamaged is None or undamaged.shape != damaged.shape:
            return
        stream = self._missing_stream(name)
        for row in range(documents := len(damaged) if damaged.ndim > 2 else 1):
            some = ... if documents == 1 and kept is None else row
            parts = [_tokens(part, some, kept) for part in (undamaged, damaged, stream) if part is not None]
            pairs.add(self._here.number * documents + row, parts)

    def close(self) -> None:
        """End the pass."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._last:
            self._block, self._copies = None, {}

    def _missing_stream(self, name: str) -> Tensor | None:
        place = (self._writers or {}).get(name)
        return None if place is None else self._here.stream[place] - self._here.damaged_stream[place]

    def _original(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.nn.Module:
        """The original where the batch is: a toolkit that spreads batches has replicas of its block, too."""
        device = args[0].device
        with self._lock:
            if device not in self._copies:
                self._copies[device] = copy.deepcopy(next(iter(self._copies.values()))).to(device)
            if self._writers is None:
                self._writers = find_writers(self._copies[device], args, kwargs)
                for original in self._copies.values():
                    self._watch(original)
            return self._copies[device]

    def _watch(self, original: torch.nn.Module) -> None:
        """Keep what its layers and its children are given."""
        for name, module in original.named_modules():
            module.register_forward_pre_hook(self._keep_input(name))
        for name, child in original.named_children():
            child.register_forward_pre_hook(self._keep_stream(name))

    # functions, not methods: a toolkit that copies its block copies the hooks, and must not copy the chain

    def _keep_input(self, name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            if name in self._wanted:
                self._here.inputs[name] = args[0]
                if len(self._here.inputs) == len(self._wanted):
                    raise _Enough

        return hook

    def _keep_stream(self, name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            if args:
                self._here.stream[name] = args[0]

        return hook

    def _keep_damaged_stream(self, name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            if args:
                self._here.damaged_stream[name] = args[0]

        return hook


def _device_of(block: torch.nn.Module) -> torch.device:
    return next(block.parameters()).device


def _without_hooks(block: torch.nn.Module) -> torch.nn.Module:
    for module in block.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        # GPTQModel's layers have one of their own
        for name, none in (("forward_hook", None), ("forward_hook_last", False)):
            if hasattr(module, name):
                setattr(module, name, none)
    return block


def _tokens(part: Tensor, row: Any, kept: Tensor | None) -> Tensor:
    """A document's tokens without padding, [tokens, features]."""
    found = part[row] if kept is None else part[row][kept[row].to(part.device).bool()]
    return found.reshape(-1, part.shape[-1])
