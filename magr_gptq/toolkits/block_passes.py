"""The unquantized chain where a toolkit runs blocks by itself, and names neither its passes nor its batches.

It makes a task for every layer whose inputs it wants, runs all batches through the block in their order, and
rounds those layers; when none is left, it runs the batches once more, for the next block. That is enough to
tell what a call of a block is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from magr_gptq.toolkits.pairs import Pairs
from magr_gptq.toolkits.undamaged import UndamagedChain


@contextmanager
def led_along(
    current: ContextVar[BlockPasses | None],
    blocks: Iterable[torch.nn.Module],
    home: torch.device | None = None,
) -> Iterator[None]:
    """A run with the passes of these blocks as the current ones."""
    passes = BlockPasses(blocks, home)
    token = current.set(passes)
    try:
        yield
    finally:
        current.reset(token)
        passes.finish()


def blocks_of(
    model: torch.nn.Module, rounded: Collection[torch.nn.Module]
) -> dict[torch.nn.Module, list[torch.nn.Module]]:
    """The outermost members of the model's lists that hold modules to be rounded, with those."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    held = {block: [m for m in block.modules() if m in rounded] for blocks in lists for block in blocks}
    inner = {inside for block in held for inside in block.modules() if inside is not block}
    return {block: modules for block, modules in held.items() if modules and block not in inner}


class BlockPasses:
    """Leads an `UndamagedChain` along a toolkit's passes, told of tasks alone.

    Where blocks are called in another way than one after the other, the chain is lost: no layer has pairs.

    Args:
        home: the device where the toolkit keeps hidden states between blocks, for the chain's, too; None is
            where a batch is run.
    """

    def __init__(self, blocks: Iterable[torch.nn.Module], home: torch.device | None = None) -> None:
        self._home = home
        self._chain = UndamagedChain()
        self._pairs: dict[torch.nn.Module, Pairs] = {}
        self._names: dict[torch.nn.Module, tuple[torch.nn.Module, str]] = {}
        self._block: torch.nn.Module | None = None
        self._batch = 0
        self._follows = False
        self._lost = False
        self._handles = []
        for block in blocks:
            self._names.update({layer: (block, name) for name, layer in block.named_modules()})
            hook = self._before(block)
            self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))

    def begin(self, layer: torch.nn.Module) -> None:
        """The toolkit wants the inputs of this layer in the next pass; saying so again is no news."""
        if layer in self._pairs:
            return
        self._pairs[layer] = Pairs()
        self._follows, self._block = True, None

    def add(
        self, layer: torch.nn.Module, damaged: Tensor, returned: Tensor, gram: Tensor | None = None
    ) -> None:
        """The toolkit has taken this input of the layer; everything is as for `UndamagedChain.pair`."""
        if not self._lost and layer in self._pairs and layer in self._names:
            self._chain.pair(self._names[layer][1], self._pairs[layer], damaged, returned, gram=gram)

    def sum_up(self, layer: torch.nn.Module, reduce: Callable[[Tensor], Any]) -> None:
        """Sum up what several processes have added for this layer; see `Pairs.sum_up`."""
        if layer in self._pairs:
            self._pairs[layer].sum_up(reduce)

    def end(self, layer: torch.nn.Module) -> Pairs | None:
        """The toolkit rounds this layer; what both chains add up to there, None where the chain was lost."""
        self._chain.let_go()
        self._block = None
        pairs = self._pairs.pop(layer, None)
        return None if self._lost else pairs

    def finish(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._chain.close()

    def _before(self, block: torch.nn.Module) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # until there is a first task the toolkit looks for what enters the first block
            if self._follows and not self._lost:
                self._run(block, args, kwargs)

        return hook

    def _run(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if block is not self._block:
            self._lost = not self._open(block)
            if self._lost:
                self._chain.close()
                return
        self._chain.run(self._batch, args, kwargs, self._home)
        self._batch += 1

    def _open(self, block: torch.nn.Module) -> bool:
        """Begin a pass; False where layers of another block wait for their inputs, too."""
        self._chain.close()
        waiting = [self._names[layer] for layer in self._pairs if layer in self._names]
        self._block, self._batch = block, 0
        self._chain.open(block, [name for _, name in waiting])
        return all(owner is block for owner, _ in waiting)
