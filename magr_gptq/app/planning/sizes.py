"""The bytes that a checkpoint's files have, before there are any."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from magr_gptq.allocation.worth import Width

Shape = tuple[int, int]
HALF, WORD = 2, 4
# what a tensor's entry in a file's header has besides its name
LONGEST = {"": {"dtype": "BF16", "shape": [10**6, 10**6], "data_offsets": [10**11, 10**11]}}
ENTRY = len(json.dumps(LONGEST)) + 2


@dataclass(frozen=True)
class Layout:
    """How a toolkit stores a quantized layer.

    layer_bytes: of a layer [out, in] at a width, symmetric or not. tensors: the ends of their names;
    asymmetric: of those that only asymmetric grids have.
    """

    layer_bytes: Callable[[Shape, Width, bool], int]
    tensors: tuple[str, ...]
    asymmetric: tuple[str, ...] = ()


def gptq_bytes(shape: Shape, width: Width, _sym: bool) -> int:
    """GPTQ's: codes and zero points in words of 32 bits, scales in 16, a group's number for each column."""
    rows, columns = shape
    groups = group_count(columns, width)
    codes = _words(columns * width.bits) * rows
    zeros = groups * _words(rows * width.bits)
    return WORD * (codes + zeros + columns) + HALF * groups * rows


def compressed_bytes(shape: Shape, width: Width, sym: bool) -> int:
    """compressed-tensors' codes and zero points in words of 32 bits, scales in 16, the shape."""
    rows, columns = shape
    groups = group_count(columns, width)
    zeros = 0 if sym else groups * _words(rows * width.bits)
    return WORD * (_words(columns * width.bits) * rows + zeros) + HALF * groups * rows + 2 * 8


LAYOUTS = {
    "gptqmodel": Layout(gptq_bytes, ("qweight", "qzeros", "scales", "g_idx")),
    "llm-compressor": Layout(
        compressed_bytes, ("weight_packed", "weight_scale", "weight_shape"), ("weight_zero_point",)
    ),
}


def group_count(columns: int, width: Width) -> int:
    """Groups of a row, the last of which may be short."""
    return 1 if width.group_size == -1 else -(-columns // width.group_size)


def header_bytes(layers: Mapping[str, Shape], others: Mapping[str, int], layout: Layout, sym: bool) -> int:
    """At most what the headers of the files take, with every tensor's name in them.

    others: numbers of what is not quantized, by name.
    """
    ends = layout.tensors if sym else (*layout.tensors, *layout.asymmetric)
    packed = (len(name) + 1 + len(end) + ENTRY for name in layers for end in ends)
    return sum(packed) + sum(len(name) + ENTRY for name in others) + 128


def _words(bits: int) -> int:
    return -(-bits // 32)
