"""A plan in the words of the toolkits' own configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from magr_gptq.app.planning.alike import by_fused_name, head_among, pattern

# of a layer: bits and group size
Pair = Sequence[int]


def dynamic_of(widths: Mapping[str, Pair], usual: Pair) -> dict[str, dict[str, int]]:
    """GPTQModel's `dynamic`: what differs from the usual width, by patterns that match whole names alone.

    The output layer is always there: without a pattern GPTQModel gives it a width of its own choice.
    """
    found, head = {}, head_among(widths)
    for fused, names in by_fused_name(widths).items():
        alike = len({tuple(widths[name]) for name in names}) == 1
        units = {fused: names} if alike else {name: [name] for name in names}
        for unit, members in units.items():
            bits, group = widths[members[0]]
            if (bits, group) != tuple(usual) or unit == head:
                found[pattern(unit, members)] = {"bits": bits, "group_size": group}
    return found


def config_groups_of(widths: Mapping[str, Pair], sym: bool) -> dict[str, dict[str, Any]]:
    """compressed-tensors' `config_groups`: one a width, whose targets are the layers' names."""
    by_width: dict[tuple[int, ...], list[str]] = {}
    for name, width in widths.items():
        by_width.setdefault(tuple(width), []).append(name)
    return {
        f"group_{number}": {"targets": names, "weights": weight_scheme(bits, group, sym)}
        for number, ((bits, group), names) in enumerate(sorted(by_width.items()))
    }


def weight_scheme(bits: int, group: int, sym: bool) -> dict[str, Any]:
    """How compressed-tensors writes a width down."""
    scheme = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "channel"}
    return scheme if group == -1 else {**scheme, "strategy": "group", "group_size": group}
