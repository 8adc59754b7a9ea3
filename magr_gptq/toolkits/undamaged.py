"""The unquantized model's way through the calibration batches, one block beside the toolkit's.

A toolkit keeps what enters a block once all earlier ones are quantized. Here what enters it in the
unquantized model is kept as well, and a copy of the block from before its first layer was rounded. Whenever
the toolkit runs a batch through the block, the copy has run it first: so what a layer is given in both chains
is in memory together, for one batch at a time. That costs one more block and two more hidden states a token,
and once more what blocks share beside their stream. Where a device has no room for that, layers aim at their
own output; the toolkit's run goes on.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from magr_gptq.reduction.importance import by_document
from magr_gptq.toolkits.memory import is_distributed, is_out_of_memory
from magr_gptq.toolkits.original import Original, Seen
from magr_gptq.toolkits.pairs import Pairs
from magr_gptq.toolkits.shared import Shared
from magr_gptq.toolkits.stream import BLOCK


class _Here(threading.local):
    """One thread's batch: its number, what the unquantized chain saw of it, the stream in the other chain."""

    def __init__(self) -> None:
        self.start(0, Seen())

    def start(self, number: int, seen: Seen) -> None:
        self.number, self.seen = number, seen
        self.damaged_stream: dict[str, Tensor] = {}

    def missing_stream(self, place: str) -> Tensor:
        """r − r̂ at a place of the block, float32."""
        return self.seen.stream[place].float() - self.damaged_stream[place].float()


class UndamagedChain:
    """The unquantized chain of one run, which an adapter leads along the toolkit's passes.

    `open` a pass over all batches through a block; `run` before the toolkit runs each; `pair` in the hooks by
    which it takes a layer's inputs; `close` after the pass.

    states: what enters the next block, by the number of the batch; kept from block to block, as is what
        blocks share. lost: whether memory ran out, so that no layer is paired any longer.
    """

    def __init__(self) -> None:
        self._block: torch.nn.Module | None = None
        self._original: Original | None = None
        self.states: dict[int, Tensor] = {}
        self._shared = Shared()
        self._next: dict[int, Tensor] = {}
        self._wanted: frozenset[str] = frozenset()
        self._last = True
        self.lost = False
        # an adapter lets go of a layer's sums once it is rounded
        self._paired: WeakSet[Pairs] = WeakSet()
        self._handles: list[Any] = []
        self._here = _Here()
        self._lock = threading.Lock()

    def open(self, block: torch.nn.Module, wanted: Collection[str]) -> None:
        """Begin a pass: of the layers of these names in the block inputs are wanted.

        None are wanted in the last pass through a block, which gives the next block's inputs.
        """
        if self.lost:
            return
        if block is not self._block:
            self._block, self._original, self._next = block, None, {}
            with self._or_lost():
                self._original = Original(block)
        self._last = not wanted
        # a mixture's experts get other tokens in each chain
        self._wanted = frozenset(name for name in wanted if not any(p.isdigit() for p in name.split(".")))
        self._handles = [
            child.register_forward_pre_hook(self._keep_damaged_stream(name))
            for name, child in block.named_children()
            if self._wanted
        ]

    def run(
        self,
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        home: torch.device | None = None,
        kept: Tensor | None = None,
    ) -> None:
        """Run the block's original on a batch; the toolkit runs the block next, in the same thread.

        Args:
            number: of the batch. args, kwargs: of the block, where the toolkit's hidden state comes first.
            home: the device where a hidden state is kept; None is where the batch is run.
            kept: [documents, tokens], false where a token is padding; None where none is.
        """
        damaged, rest = args[0], args[1:]
        # another thread may lose the chain meanwhile
        original, states, upcoming, here = self._original, self.states, self._next, self._here
        if original is None:
            return
        with self._or_lost():
            if (self._wanted or self._last) and number not in upcoming:
                home = home or damaged.device
                # nothing is damaged before the first block
                state = states.get(number, damaged).to(damaged.device)
                with torch.no_grad(), self._shared.own(number, kwargs) as own:
                    seen = original.run(number, (state, *rest), own, self._wanted, home, kept)
                here.start(number, seen)
                here.damaged_stream[BLOCK] = damaged
                if seen.output is not None:
                    upcoming[number] = seen.output.to(home)
            if self._last:
                states[number] = upcoming.pop(number)

    @contextmanager
    def _or_lost(self) -> Iterator[None]:
        """Where memory runs out, no layer is paired from here on, and all that the chain keeps is let go.

        Not under torchrun: the other ranks, which go on, would wait for this one's sums.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or is_distributed():
                raise
            message = "no memory for the unquantized chain: layers aim at their own output from here on"
            warnings.warn(f"magr: {message}", stacklevel=4)
            with self._lock:
                self.lost, self._original, self._here, self._shared = True, None, _Here(), Shared()
                self.states, self._next = {}, {}
                for pairs in self._paired:
                    pairs.drop()

    def pair(
        self,
        name: str,
        pairs: Pairs,
        damaged: Tensor,
        returned: Tensor,
        kept: Tensor | None = None,
        gram: Tensor | None = None,
    ) -> None:
        """Count the batch in hand in: what a layer of this name is given, or returns, in both chains.

        Args:
            damaged: what the toolkit gives it, [documents, tokens, in].
            returned: what it returned then, not rounded yet, [documents, tokens, out].
            kept: [documents, tokens], false where a token is padding; None where none is.
            gram: XᵀX of its tokens without padding, where the toolkit has made it; see `Pairs.add`.
        """
        here, original = self._here, self._original
        undamaged = here.seen.taken.pop(name, None)
        if undamaged is None or original is None:
            return
        place = original.written_at(name)
        spoiled = damaged if place is None else returned
        if undamaged.shape != spoiled.shape:
            return
        documents = len(damaged) if damaged.ndim > 2 else 1
        if kept is not None:
            if damaged[..., 0].numel() % kept.numel():
                return
            documents = len(kept)
            # where heads follow the tokens, all of a token's are kept
            kept = kept.repeat_interleave(damaged[..., 0].numel() // kept.numel(), 1)
        if not documents:
            return
        with self._lock:
            if self.lost:
                pairs.drop()
            self._paired.add(pairs)
        with self._or_lost():
            # a toolkit may run a layer on another device than its block
            lacking = undamaged.to(spoiled.device).float() - spoiled.float()
            if place is not None:
                lacking += here.missing_stream(place).to(spoiled.device)
            parts = [part.reshape(documents, -1, part.shape[-1]) for part in (damaged, lacking)]
            importance = _importance(here.seen.importance.pop(name, None), documents, kept)
            first, of_output = here.number * documents, place is not None
            pairs.add(first, *parts, kept=kept, of_output=of_output, gram=gram, importance=importance)

    def close(self) -> None:
        """End the pass."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.let_go()
        if self._last:
            self._block = self._original = None

    def let_go(self) -> None:
        """Keep nothing of the last batch, whose memory is for the rounding."""
        self._here = _Here()
        self._paired.clear()

    # a function, not a method: who copies a block copies its hooks, and must not copy the chain

    def _keep_damaged_stream(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            if args:
                self._here.damaged_stream[name] = args[0]

        return hook


def _importance(found: Tensor | None, documents: int, kept: Tensor | None) -> Tensor | None:
    """Of each token, [documents, tokens]; None where all count alike."""
    if found is None:
        return None
    return by_document(found.reshape(documents, -1), None if kept is None else kept.to(found.device))
