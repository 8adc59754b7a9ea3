"""How much each token counts to the layers that attention mixes, asked of the unquantized attention itself.

See `reduction.importance`. It takes one step back from what attention returns to what those layers return.
That takes about as long as attention itself. So a few documents are asked, and others of their length count
their tokens by the place: most of the importance is that of the first ones.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

import torch
from torch import Tensor

from magr_gptq.reduction.importance import by_document, importance
from magr_gptq.toolkits.memory import is_out_of_memory
from magr_gptq.toolkits.stream import LAYERS, first_of

# that are asked, of each length
DOCUMENTS = 8


class Calls(dict[str, tuple[Tensor, Tensor]]):
    """What layers were given and have returned, by name."""


class _Here(threading.local):
    """One thread's calls; None where nobody asks."""

    calls: Calls | None = None


class Weighing:
    """Runs a block's children so that they tell what each token counts.

    possible: whether all that were asked could; one that has no gradient is not asked again.
    """

    def __init__(self) -> None:
        self.possible = True
        self._here = _Here()
        # by layer and length, of each document that was asked, [tokens]
        self._told: dict[tuple[str, int], list[Tensor]] = {}

    def watch(self, block: torch.nn.Module) -> None:
        """Hook all layers of a block."""
        for name, module in block.named_modules():
            if isinstance(module, LAYERS):
                module.register_forward_hook(self._note(name))

    def known(self, names: Collection[str], documents: int, tokens: int) -> dict[str, Tensor]:
        """The importance by place, [documents, tokens], of all these layers; none before enough have told."""
        told = {name: self._told.get((name, tokens), []) for name in names}
        if any(len(each) < DOCUMENTS for each in told.values()):
            return {}
        return {name: torch.stack(each).mean(0).expand(documents, -1) for name, each in told.items()}

    def run(
        self,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: Collection[str],
        seed: int,
        kept: Tensor | None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the child returns, and the importance of each token, [..., tokens], to layers of these names.

        Layers that share their input, such as queries, keys and values, have one importance.

        Args:
            run: the child's forward. kept: [documents, tokens], false where a token is padding, of which
                nobody reads what the child returns.
        """
        try:
            with torch.inference_mode(False), torch.enable_grad():
                returned, calls = self._noted(run, mapped(_normal, args), mapped(_normal, kwargs))
                asked = _asked(first_of(returned), calls, [n for n in names if n in calls], seed, kept)
        except (RuntimeError, MemoryError) as error:
            self.possible = False
            message = (
                "no memory to weigh tokens" if is_out_of_memory(error) else "attention without a gradient"
            )
            warnings.warn(f"magr: {message}: they count alike from here on ({error})", stacklevel=2)
            return run(*args, **kwargs), {}
        if kept is None or bool(kept.all()):
            for name, one in asked.items():
                told = self._told.setdefault((name, one.shape[-1]), [])
                # on the CPU, as batches may be run on several devices
                told.extend(by_document(one.flatten(0, -2)).cpu())
        return mapped(_detached, returned), asked

    def _noted(self, run: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Calls]:
        self._here.calls = calls = Calls()
        try:
            return run(*args, **kwargs), calls
        finally:
            self._here.calls = None
            # what it has written for later blocks
            mapped(_detached, kwargs)

    # a function, not a method: who copies a block copies its hooks, and must not copy what they belong to

    def _note(self, name: str) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...], output: Any) -> Any:
            calls = self._here.calls
            if calls is None or not isinstance(output, Tensor):
                return None
            is_leaf = not output.requires_grad
            calls[name] = args[0], output.requires_grad_()
            # attention may scale it in place, which a leaf does not allow
            return output.clone() if is_leaf else None

        return hook


def mapped(change: Callable[[Tensor], Tensor], given: Any) -> Any:
    """The same with every tensor changed, in tuples, too, and in dicts, which stay the same objects.

    Blocks write into some dicts what later blocks are to read.
    """
    if isinstance(given, Tensor):
        return change(given)
    if type(given) is tuple:
        return tuple(mapped(change, value) for value in given)
    if isinstance(given, MutableMapping):
        given.update({key: mapped(change, value) for key, value in given.items()})
    return given


def _asked(
    returned: Any, calls: Calls, names: Collection[str], seed: int, kept: Tensor | None
) -> dict[str, Tensor]:
    """The importance of each token to layers of these names, as far as what is returned depends on them."""
    if not names or not isinstance(returned, Tensor):
        return {}
    outputs = [[y for x, y in calls.values() if x is calls[name][0]] for name in names]
    found = importance(returned, outputs, _cotangent(returned, seed, kept))
    return {name: one for name, one in zip(names, found, strict=True) if one is not None}


def _normal(tensor: Tensor) -> Tensor:
    """A copy of what was made in inference mode, which autograd refuses."""
    return tensor.clone() if tensor.is_inference() else tensor


def _detached(tensor: Tensor) -> Tensor:
    """The same object where it is in no graph: who compares objects sees what was written."""
    return tensor.detach() if tensor.requires_grad else tensor


def _cotangent(returned: Tensor, seed: int, kept: Tensor | None) -> Tensor:
    """N(0, 1), the same on every device; 0 at padding."""
    u = torch.randn(returned.shape, generator=torch.Generator().manual_seed(seed)).to(returned)
    if kept is not None and kept.shape == u.shape[:2]:
        u *= kept.to(u)[..., None]
    return u
