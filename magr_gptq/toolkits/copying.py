"""A copy of a block that stands alone: it has its weights in memory, and no hooks of others.

Two libraries keep a block's weights elsewhere until it runs. compressed-tensors has mappings in place of the
dicts of a module's tensors; copied, they no longer find what lies on disk. accelerate has hooks that know the
block before, which is copied along, with all blocks before that.
"""

from __future__ import annotations

import copy
import inspect
from types import MethodType
from typing import Any

import torch


def plain_copy(block: torch.nn.Module) -> torch.nn.Module:
    """A copy of the block, which stays as it is, to be run where the copy's weights are.

    That is where compressed-tensors would run the block, or else where accelerate keeps it, or where it is.
    Weights that accelerate keeps in a map are shared with it.
    """
    # by id, what deepcopy takes in place of a copy of its own
    instead: dict[int, Any] = {}
    for module in block.modules():
        instead.update(_plain_tensors(module))
        if hook := vars(module).get("_hf_hook"):
            instead[id(hook)] = hook
    copied = copy.deepcopy(block, instead)
    for module in copied.modules():
        _drop_offloading(module)
        _drop_hooks(module)
    return copied


def _plain_tensors(module: torch.nn.Module) -> dict[int, dict[str, Any]]:
    """Copies of offloaded tensors, by the id of the mapping that holds them, one module's at a time."""
    # told by what it is not, as compressed-tensors may be absent; it reads a tensor where it is asked for one
    offloaded = [held for held in (module._parameters, module._buffers) if not isinstance(held, dict)]
    return {id(held): copy.deepcopy(dict(held)) for held in offloaded}


def _drop_offloading(module: torch.nn.Module) -> None:
    """Give it back the forward that others have wrapped to move weights and inputs."""
    if "_hf_hook" in vars(module):
        # who has such a hook has accelerate, which also gives back the weights that a hook holds
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(module)
    if forward := vars(module).pop("_original_forward_func", None):
        # compressed-tensors' forward would ask the original where to run
        module.forward = MethodType(forward, module)


def _drop_hooks(module: torch.nn.Module) -> None:
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()
    # GPTQModel's layers have one of their own
    for name, none in (("forward_hook", None), ("forward_hook_last", False)):
        if hasattr(module, name):
            setattr(module, name, none)
    if hasattr(module, "forward_hook"):
        # they run in inference mode, too, through which nothing can be differentiated
        module.forward = MethodType(inspect.unwrap(type(module).forward), module)
