"""The plan of a given size: the least divergence that is expected."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Any

from magr_gptq.allocation.allocate import Item, allocate
from magr_gptq.app.planning.alike import by_fused_name
from magr_gptq.app.planning.found import Candidate, Survey
from magr_gptq.app.planning.plan import BitPlan
from magr_gptq.app.planning.sizes import LAYOUTS
from magr_gptq.errors import InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Budget:
    """What a plan must not exceed: either bits a weight in the planned layers, or bytes of all files."""

    avg_bits: float | None = None
    size: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Of the two, what was given."""
        return {"avg_bits": self.avg_bits} if self.size is None else {"size": self.size}

    def limit(self, found: Survey) -> int:
        """The bytes that the planned layers may have."""
        if self.size is not None:
            return self.size - found.rest_bytes
        return int((self.avg_bits or 0) * weights_of(found) / 8)

    def in_words(self, layer_bytes: int, found: Survey) -> str:
        """So many bytes of the planned layers, in the unit that was asked for."""
        if self.size is not None:
            return f"--size {(layer_bytes + found.rest_bytes) / 1e6:,.2f}MB"
        return f"--avg-bits {8 * layer_bytes / weights_of(found):.3f}"


def parse_size(text: str) -> int:
    """Bytes, of a text such as 4GB, 3.5GiB or 900MB.

    Raises:
        InputError: no number, or an unknown unit.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise InputError(f"--size {text}: give a number with a unit, such as 4GB, 3.5GiB or 900MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def weights_of(found: Survey) -> int:
    """How many weights the surveyed layers have."""
    return sum(prod(layer.shape) for layer in found.layers.values())


def decide(found: Survey, budget: Budget, *, engine: str, sym: bool, fuses: bool = True) -> BitPlan:
    """The widths of least expected divergence within the budget; layers that are run as one get one.

    fuses: whether what runs the result runs q, k and v as one, and gate and up.

    Raises:
        InputError: less than all layers at their narrowest take, or more than all at their widest.
    """
    groups = by_fused_name(found.layers, fuses)
    items = [
        Item.together([_item(found, found.layers[name], engine, sym) for name in names])
        for names in groups.values()
    ]
    limit = budget.limit(found)
    least = sum(int(item.sizes.min()) for item in items)
    most = sum(int(item.sizes.max()) for item in items)
    if not least <= limit <= most:
        asked, low, high = (budget.in_words(size, found) for size in (limit, least, most))
        bits = ", ".join(str(bits) for bits in dict.fromkeys(width.bits for width in found.widths))
        raise InputError(f"{asked}: with {bits} bits it must lie between {low} and {high}")
    options = allocate(items, limit)
    chosen = {
        name: found.widths[option]
        for names, option in zip(groups.values(), options, strict=True)
        for name in names
    }
    return BitPlan({name: chosen[name] for name in found.layers}, found, engine, sym, budget.to_dict())


def _item(found: Survey, layer: Candidate, engine: str, sym: bool) -> Item:
    stored = LAYOUTS[engine].layer_bytes
    return Item.of([stored(layer.shape, width, sym) for width in found.widths], layer.divergences)
