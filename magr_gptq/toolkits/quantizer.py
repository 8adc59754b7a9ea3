"""A GPTQ quantizer whose grid is MagR's while one layer is rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import Tensor

from magr_gptq.rounding.step import least_error_factor, shrink_grid


@contextmanager
def shrunk_grid(quantizer: Any, *, factors: Tensor, bits: int, lowest_zero: int = 0) -> Iterator[None]:
    """Let `quantizer.find_params` end with `shrink_grid`, by the best of the factors [rows, factors].

    Bound to the instance: its class stays the one that the toolkit tests for before it takes its
    fused kernel, and copies made for static groups carry it along.
    """
    find_params = type(quantizer).find_params

    def find_shrunk_params(self: Any, x: Any, weight: bool = False) -> None:
        find_params(self, x, weight=weight)
        scale, zero = self.scale, self.zero
        # a toolkit whose device runs out of memory goes on elsewhere
        here = factors.to(scale.device)
        best = least_error_factor(x.flatten(1), scale, zero, here, lowest=0, highest=2**bits - 1)
        self.scale, self.zero = shrink_grid(scale, zero, beta=best, bits=bits, lowest_zero=lowest_zero)

    quantizer.find_params = MethodType(find_shrunk_params, quantizer)
    try:
        yield
    finally:
        restore_grid(quantizer)


def restore_grid(quantizer: Any) -> None:
    """Let `quantizer.find_params` be its class's again."""
    vars(quantizer).pop("find_params", None)
