"""Devices that no machine here has: tensors with real data that claim to lie on one of two.

What meets in one operation must lie on one device, as on GPUs; a number, a tensor without dimensions, and
indices may come from the CPU. Only that is tried here, no device's arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
CPU = torch.device("cpu")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# what lies where its first argument does, whatever the others are
FIRST = {aten.copy_.default, aten.detach.default, aten.set_.source_Tensor}


class Pretended(Tensor):
    """elem: the data, on the CPU."""

    @staticmethod
    def __new__(cls, elem: Tensor, device: torch.device) -> Pretended:
        return torch.Tensor._make_wrapper_subclass(
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            device=device,
        )  # fmt: skip

    def __init__(self, elem: Tensor, device: torch.device) -> None:  # noqa: ARG002
        self.elem = elem

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    # what torch asks of the storage, which is none

    def tolist(self) -> Any:
        return self.elem.tolist()

    def __getitem__(self, key: Any) -> Tensor:
        return super().__getitem__(torch.tensor(key) if isinstance(key, list) else key)


class Pretending(TorchDispatchMode):
    """Within it, what is made on such a device is a `Pretended`, too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def on(tensor: Tensor, index: int = 0) -> Tensor:
    """A copy of it on the device of this number."""
    return Pretended(tensor.detach().clone(), torch.device(NAME, index))


def data(value: Any) -> Any:
    """What a tensor holds, on the CPU; anything else as it is."""
    return value.elem if isinstance(value, Pretended) else value


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    place = _place(function, args, kwargs, tensors)
    kwargs = {**kwargs, "device": CPU} if kwargs.get("device") is not None else kwargs
    held = {id(tensor.elem): tensor for tensor in tensors if isinstance(tensor, Pretended)}
    found = function(*tree_map(data, args), **tree_map(data, kwargs))

    def dress(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or place.type == "cpu":
            return leaf
        # in-place operations return what they were given
        return held[id(leaf)] if id(leaf) in held else Pretended(leaf, place)

    return tree_map(dress, found)


def _place(function: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> torch.device:
    """Where the result lies; RuntimeError where a device would refuse."""
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        return torch.device(NAME, device.index or 0) if device.type == NAME else device
    if not tensors:
        return CPU
    if function in FIRST:
        return tensors[0].device
    used = tensors
    if function in INDEXED:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if any(index.device not in (CPU, args[0].device) for index in indices):
            raise RuntimeError(f"indices of {args[0].device} lie elsewhere")
        used = [args[0], *(leaf for leaf in args[2:3] if isinstance(leaf, Tensor))]
    sized = [tensor.device for tensor in used if tensor.dim()]
    place = next(iter(sized or [tensor.device for tensor in used if tensor.device != CPU]), CPU)
    for tensor in used:
        if tensor.device != place and (tensor.dim() or tensor.device != CPU):
            raise RuntimeError(f"{function} of tensors on {place} and {tensor.device}")
    return place
