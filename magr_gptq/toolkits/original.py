"""A block of the unquantized model: each batch runs through it once, though a toolkit makes several passes.

A toolkit takes the inputs of a few layers a pass. A child of the block, such as its attention, keeps what it
returned once the input of its last layer was taken, and gives that in later passes. So every pass goes on
about where the one before has ended.

Where inputs of attention's first layers are wanted it is run to its end, which tells how much each token
counts there; see `toolkits.weighing`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from magr_gptq.toolkits.copying import plain_copy
from magr_gptq.toolkits.stream import BLOCK, Layout, first_of, layout_of
from magr_gptq.toolkits.weighing import Weighing, mapped

# where a child has its own forward; a bound method, which follows its module where that is copied
RUN = "_magr_run"


@dataclass
class Seen:
    """Of one batch in one pass.

    taken: of the layers that were wanted: what they are given, or what they return where they write into the
        stream. importance: as `Weighing` finds it. stream: what enters the block, and each child. output: of
        the block; None where it did not run to its end. Everything but that is by name.
    """

    taken: dict[str, Tensor] = field(default_factory=dict)
    importance: dict[str, Tensor] = field(default_factory=dict)
    stream: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None


class _Enough(Exception):  # noqa: N818 - it is no error
    """All that was wanted is there; the rest of the block need not run."""


class _Here(threading.local):
    """One thread's batch.

    pending: the wanted layers that are still to come, and the children still to return.
    weighing: of the wanted layers those for which tokens are weighed.
    """

    def __init__(self) -> None:
        self.number, self.home, self.seen = 0, torch.device("cpu"), Seen()
        self.wanted: frozenset[str] = frozenset()
        self.pending: set[str] = set()
        self.weighing: set[str] = set()
        self.kept: Tensor | None = None


class Original:
    """The block as it is now, on every device where a batch is run."""

    def __init__(self, block: torch.nn.Module) -> None:
        # what is made in inference mode, where some toolkits run, can't be differentiated through
        with torch.inference_mode(False):
            first = plain_copy(block).requires_grad_(False)
        self._copies = {next(first.parameters()).device: first}
        self._kept: dict[tuple[str, int], Any] = {}
        self._here = _Here()
        self._lock = threading.Lock()
        self._layout: Layout | None = None
        self._weighing = Weighing()

    def written_at(self, name: str) -> str | None:
        """Where in `Seen.stream` the stream is that this layer writes into, None if it writes into none."""
        return self._layout.writers.get(name) if self._layout else None

    def run(
        self,
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wanted: frozenset[str],
        home: torch.device,
        kept: Tensor | None = None,
    ) -> Seen:
        """Run a batch, as far as it takes.

        Args:
            number: of the batch. args, kwargs: of the block; the hidden state comes first.
            wanted: the layers of which to take something; none where the block shall run to its end.
            home: the device where something is kept. kept: as for `UndamagedChain.run`.
        """
        block, layout = self._on(args[0].device, args, kwargs)
        here = self._here
        seen = Seen(stream={BLOCK: args[0]})
        here.number, here.home, here.wanted, here.seen, here.kept = number, home, wanted, seen, kept
        here.weighing = self._to_weigh(layout, wanted)
        if here.weighing and (kept is None or bool(kept.all())) and args[0].ndim == 3:
            seen.importance = self._weighing.known(here.weighing, *args[0].shape[:2])
            here.weighing -= seen.importance.keys()
        ending = {c for c, last in layout.last.items() if last in wanted or _inside(c, here.weighing)}
        here.pending = {*wanted, *ending}
        try:
            seen.output = first_of(block(*args, **kwargs))
        except _Enough:
            return seen
        finally:
            here.seen = Seen()  # who asked for it says how long it is kept
        for child in layout.last:
            self._kept.pop((child, number), None)
        return seen

    def _to_weigh(self, layout: Layout, wanted: frozenset[str]) -> set[str]:
        mixing = layout.mixing if self._weighing.possible else ()
        return {name for child in mixing for name in _inside(child, wanted) - {layout.last[child]}}

    def _on(
        self, device: torch.device, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[torch.nn.Module, Layout]:
        """A toolkit that spreads batches over devices has replicas of its block, too."""
        with self._lock:
            if device not in self._copies:
                with torch.inference_mode(False):
                    self._copies[device] = copy.deepcopy(next(iter(self._copies.values()))).to(device)
            if self._layout is None:
                self._layout = layout_of(self._copies[device], args, kwargs)
                for each in self._copies.values():
                    self._watch(each, self._layout)
            return self._copies[device], self._layout

    def _watch(self, block: torch.nn.Module, layout: Layout) -> None:
        """Take what its children and its layers are given, or return; keep what children return."""
        for name, module in block.named_modules():
            if name in layout.writers:
                module.register_forward_hook(self._take_output(name))
            else:
                module.register_forward_pre_hook(self._take_input(name))
        self._weighing.watch(block)
        for name, child in block.named_children():
            child.register_forward_pre_hook(self._take_stream(name))
            if name in layout.last:
                setattr(child, RUN, child.forward)
                child.forward = MethodType(self._kept_or_run(name), child)
                child.register_forward_hook(self._ended(name))

    # functions, not methods: who copies a block copies its hooks, and must not copy what they belong to

    def _take_input(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            if name in self._here.wanted:
                # which may be in a graph, as what is returned may be
                self._here.seen.taken[name] = args[0].detach()
                self._done(name)

        return hook

    def _take_output(self, name: str) -> Callable[..., None]:
        def hook(_: Any, _given: Any, output: Tensor) -> None:
            if name in self._here.wanted:
                self._here.seen.taken[name] = output.detach()
                self._done(name)

        return hook

    def _take_stream(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            if args:
                self._here.seen.stream[name] = args[0]

        return hook

    def _kept_or_run(self, name: str) -> Callable[..., Any]:
        def forward(child: Any, *args: Any, **kwargs: Any) -> Any:
            here, run = self._here, getattr(child, RUN)
            inside = _inside(name, here.wanted)
            if (name, here.number) in self._kept and self._layout and inside <= self._layout.returned:
                return self._again(name, inside, _device_of(args, kwargs))
            if weighing := _inside(name, here.weighing):
                return self._weighed(run, args, kwargs, weighing)
            return run(*args, **kwargs)

        return forward

    def _again(self, child: str, wanted: Collection[str], device: torch.device) -> Any:
        """What the child returned in an earlier pass, which is what its wanted layer returned."""
        kept = _moved(self._kept[child, self._here.number], device)
        for layer in wanted:
            self._here.seen.taken[layer] = first_of(kept)
            self._done(layer)
        return kept

    def _weighed(
        self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], layers: Collection[str]
    ) -> Any:
        """What the child returns, asked what each token counts to these layers."""
        here = self._here
        returned, found = self._weighing.run(run, args, kwargs, layers, here.number, here.kept)
        here.seen.importance.update(found)
        return returned

    def _ended(self, name: str) -> Callable[..., None]:
        def hook(_: Any, _given: Any, output: Any) -> None:
            here = self._here
            if name in here.pending:
                if BLOCK not in here.pending and _is_small(output):
                    self._kept[name, here.number] = _moved(output, here.home)
                self._done(name)

        return hook

    def _done(self, name: str) -> None:
        pending = self._here.pending
        if name in pending:
            pending.discard(name)
            if not pending:
                raise _Enough


def _is_small(output: Any) -> bool:
    """Whether it is about a hidden state: attention may return its weights, too."""
    first, *more = output if isinstance(output, tuple) else (output,)
    if not all(isinstance(part, Tensor) for part in (first, *filter(None.__ne__, more))):
        return False
    return bool(sum(part.numel() for part in more if part is not None) < first.numel())


def _inside(child: str, layers: Collection[str]) -> set[str]:
    return {layer for layer in layers if layer.startswith(f"{child}.")}


def _moved(output: Any, device: torch.device) -> Any:
    return mapped(lambda tensor: tensor.to(device), output)


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    return next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
