"""The product XᵀX of a batch as GPTQModel makes it for its Hessian, so that the pairs need not make it again.

Where rows of a batch are padded, GPTQModel makes one of each row, of what is no padding.

What is touched, undone by `Patches.undo`:

- `GPTQ.process_batch`, which returns that product, unscaled, before it is added to the sum.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gptqmodel.quantization.gptq import GPTQ
from torch import Tensor

from magr_gptq.toolkits.memory import is_out_of_memory
from magr_gptq.toolkits.patching import Patches


class _Here(threading.local):
    """Where one thread keeps the product, None where nobody wants it; whether it is being made."""

    found: list[Tensor] | None = None
    # both optimum's adapter and GPTQModel's may have put this around the function
    inside = False


_here = _Here()


def apply(patches: Patches) -> None:
    """Let `of_batch` see the products."""
    patches.wrap(GPTQ, "process_batch", _process_batch, ("self", "inp"))


@contextmanager
def of_batch() -> Iterator[list[Tensor]]:
    """The sum of the products that are made inside, in this thread, if any."""
    outer = _here.found
    # where both optimum's adapter and GPTQModel's look on, they see the same
    _here.found = [] if outer is None else outer
    try:
        yield _here.found
    finally:
        _here.found = outer


def _process_batch(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_batch(self: Any, inp: Tensor) -> Any:
        nested, _here.inside = _here.inside, True
        try:
            tokens, product, device = original(self, inp)
        finally:
            _here.inside = nested
        if not nested and _here.found is not None and product is not None:
            _count_in(_here.found, product)
        return tokens, product, device

    return process_batch


def _count_in(made: list[Tensor], product: Tensor) -> None:
    """Add a product to the sum; where there is no memory for that, the batch has none."""
    try:
        # where a device's memory ran out, the toolkit goes on with the next row on the CPU; a copy, as the
        # first product becomes the toolkit's sum
        made[:] = [found.to(product.device) + product for found in made] or [product.clone()]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        made.clear()
        _here.found = None
