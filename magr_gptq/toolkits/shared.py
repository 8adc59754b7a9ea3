"""What blocks share beside the stream, such as the keys and values of Gemma 3n and 4.

The model hands one mapping to all of its blocks, by name. Some of them set its entries, later ones read them.
A toolkit keeps one for each batch, which its own blocks write into once they are quantized. So the
unquantized chain has its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any


class Shared:
    """What the blocks of one chain have written, by the number of the batch and the argument's name."""

    def __init__(self) -> None:
        self._written: dict[tuple[int, str], dict[Any, Any]] = {}

    @contextmanager
    def own(self, number: int, kwargs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A block's arguments for one run, with the chain's mappings in place of the toolkit's."""
        mappings = {name: copy.copy(arg) for name, arg in kwargs.items() if isinstance(arg, MutableMapping)}
        for name, mapping in mappings.items():
            for key, value in self._written.get((number, name), {}).items():
                mapping[key] = value
        yield {**kwargs, **mappings}
        for name, mapping in mappings.items():
            # a later pass need not run what has written before, so that it is kept from pass to pass
            self._written[number, name] = _changed(kwargs[name], mapping)


def _changed(before: MutableMapping[Any, Any], after: MutableMapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in after.items() if key not in before or before[key] is not value}
