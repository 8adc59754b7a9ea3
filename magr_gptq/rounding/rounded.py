"""Rows on their grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounded:
    """Rows on their grids: weight = scale·(code − zero), code in lowest … lowest + 2ᵇ − 1.

    weight: [rows, in] float32. scale, zero: [rows, groups]. group_of: the group of every column, [in].
    lowest: the smallest code.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor
    group_of: Tensor
    lowest: int = 0

    @classmethod
    def joined(cls, parts: Sequence[Rounded]) -> Rounded:
        """The rows of all parts, which have the same groups."""
        weight, scale, zero = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "scale", "zero")
        )
        return replace(parts[0], weight=weight, scale=scale, zero=zero)

    def to(self, device: torch.device | str) -> Rounded:
        """The same elsewhere."""
        weight, scale, zero, group_of = (
            tensor.to(device) for tensor in (self.weight, self.scale, self.zero, self.group_of)
        )
        return Rounded(weight, scale, zero, group_of, self.lowest)

    def rows(self, picked: Tensor) -> Rounded:
        """Some of the rows."""
        return replace(self, weight=self.weight[picked], scale=self.scale[picked], zero=self.zero[picked])

    def where(self, better: Tensor, other: Rounded) -> Rounded:
        """These rows, or another's with the same groups where that is better, [rows] of bool."""
        weight, scale, zero = (
            torch.where(better[:, None], theirs, mine)
            for mine, theirs in (
                (self.weight, other.weight),
                (self.scale, other.scale),
                (self.zero, other.zero),
            )
        )
        return replace(self, weight=weight, scale=scale, zero=zero)

    def store_as_(self, dtype: torch.dtype) -> Rounded:
        """As `rescale_`: the same codes on the scales that this dtype can hold; what it can't hold stays."""
        held = self.scale.to(dtype).to(self.scale)
        usable = held.isfinite() & (held != 0)
        return self.rescale_(torch.where(usable, held / self.scale, 1.0))

    def rescale_(self, factors: Tensor) -> Rounded:
        """The same codes on other scales, in the memory of these rows, which are of no use any longer.

        factors: [rows, groups].
        """
        self.weight.mul_(self.spread(factors))
        return replace(self, scale=self.scale * factors)

    def spread(self, values: Tensor) -> Tensor:
        """The groups' values [rows, groups] at every column; a row's only one need not be repeated."""
        return values if values.shape[1] == 1 else values[:, self.group_of.long()]
