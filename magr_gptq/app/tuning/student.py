"""The quantized model with its codes fixed, and every scale, norm and bias free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from magr_gptq.app.tuning.checkpoint import Checkpoint
from magr_gptq.app.tuning.heads import decoder_of
from magr_gptq.errors import InputError
from magr_gptq.tuning.linear import linear
from magr_gptq.tuning.stored import moved
from magr_score.packed import Grid

SCALES, WEIGHT, BIAS = "scales", "weight", "bias"


class Free(nn.Module):
    """A parametrization: the parameter is θ, and what the model sees is what `moved` makes of it."""

    base: Tensor
    unit: Tensor

    def __init__(self, base: Tensor, unit: Tensor, stored: torch.dtype, used: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("base", base)
        self.register_buffer("unit", unit)
        self.stored, self._used = stored, used

    def forward(self, offset: Tensor) -> Tensor:
        """What the model uses, in its own dtype."""
        return self.numbers(offset).to(self._used)

    def numbers(self, offset: Tensor) -> Tensor:
        """As the file will hold them, in float32."""
        return moved(self.base, self.unit, offset, self.stored)


class PackedLinear(nn.Module):
    """A layer with fixed codes, in place of the unquantized model's."""

    codes: Tensor
    group: Tensor
    bias: Tensor | None

    def __init__(self, grid: Grid, stored: torch.dtype, bias: Tensor | None) -> None:
        super().__init__()
        # q − z of 8 bits does not fit into 8
        small = grid.codes.abs().max() < 2**7
        self.register_buffer("codes", grid.codes.to(torch.int8 if small else torch.int16))
        self.register_buffer("group", grid.group)
        self.scales = nn.Parameter(grid.scales)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(bias)
            free(self, BIAS, bias)
        # each scale counts in itself, so that no sign changes
        _free(self, SCALES, Free(grid.scales, grid.scales, stored, torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """y = x·Wᵀ + b in the dtype of x."""
        outputs = linear(inputs, self.scales, self.codes, self.group)
        return outputs if self.bias is None else outputs + self.bias.to(inputs.dtype)


def free(module: nn.Module, name: str, saved: Tensor) -> None:
    """Free a norm's weight or a bias, whose numbers count in their root mean square."""
    base = saved.float()
    used = getattr(module, name).dtype
    _free(module, name, Free(base, base.square().mean().sqrt(), saved.dtype, used))


def _free(module: nn.Module, name: str, how: Free) -> None:
    device = getattr(module, name).device
    setattr(module, name, nn.Parameter(torch.zeros_like(how.base, device=device)))
    # unsafe: it may change the dtype
    parametrize.register_parametrization(module, name, how.to(device), unsafe=True)


def make_student(model: Any, checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """Turn the unquantized model into the quantized one, layer by layer; what was freed, by its file's name.

    Raises:
        InputError: the checkpoint has layers or tensors that the model lacks, or the other way round.
    """
    freed: dict[str, nn.Module] = {}
    model.requires_grad_(False)
    for layer in checkpoint.layers:
        packed = _packed(model, checkpoint, layer)
        _replace(model, layer, packed)
        freed[checkpoint.scales_name(layer)] = packed
        if packed.bias is not None:
            freed[f"{layer}.{BIAS}"] = packed
    _load_others(model, checkpoint, set(freed))
    for name, module in _norms(model, checkpoint, set(freed)):
        free(module, name.rpartition(".")[2], checkpoint.tensor(name))
        freed[name] = module
    return freed


def offsets(model: nn.Module) -> list[nn.Parameter]:
    """Every θ, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def as_saved(freed: dict[str, nn.Module], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The numbers by the names of the file's tensors, in its layout."""
    found = {}
    for name, module in freed.items():
        own = name.rpartition(".")[2]
        is_scale = isinstance(module, PackedLinear) and own != BIAS
        value = _numbers(module, SCALES if is_scale else own)
        found[name] = checkpoint.as_saved(value) if is_scale else value
    return found


def _numbers(module: Any, name: str) -> Tensor:
    found = module.parametrizations[name]
    numbers: Tensor = found[0].numbers(found.original)
    return numbers


def _packed(model: nn.Module, checkpoint: Checkpoint, layer: str) -> PackedLinear:
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        raise InputError(
            f"{layer} of the checkpoint is no layer of --original as transformers has it, which holds the "
            "experts of a mixture in one weight; give the model that was quantized. Mixtures can't be tuned"
        ) from None
    grid = checkpoint.grid(layer)
    wanted = _shape(module)
    if wanted != tuple(grid.codes.shape):
        raise InputError(
            f"{layer} is {list(grid.codes.shape)} in the checkpoint and {list(wanted)} in --original; give "
            "the model that was quantized"
        )
    bias = f"{layer}.{BIAS}"
    saved = checkpoint.tensor(bias) if bias in checkpoint.kept else None
    stored = checkpoint.tensor(checkpoint.scales_name(layer)).dtype
    device = next(module.parameters()).device
    return PackedLinear(grid, stored, saved).to(device)


def _shape(module: nn.Module) -> tuple[int, ...]:
    """[out, in] of a linear layer; nothing of others."""
    if isinstance(module, Conv1D):
        return tuple(module.weight.T.shape)
    return tuple(module.weight.shape) if isinstance(module, nn.Linear) else ()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


@torch.no_grad()
def _load_others(model: Any, checkpoint: Checkpoint, done: set[str]) -> None:
    """Copy every other tensor of the file, so that what is not tuned is the checkpoint's, too."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not _of_packed(model, name)}
    filled = set()
    for name in checkpoint.others():
        if name in done:
            continue
        saved = checkpoint.tensor(name)
        if name not in own or own[name].shape != saved.shape:
            raise InputError(
                f"the checkpoint's tensor {name} {list(saved.shape)} is none of --original; give the model "
                "that was quantized"
            )
        own[name].copy_(saved)
        filled.add(own[name].data_ptr())
    lacking = [name for name, tensor in own.items() if tensor.data_ptr() not in filled]
    if lacking:
        raise InputError(f"the checkpoint has no tensor {lacking[0]}, which --original has; copy it again")


def _of_packed(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    parents = (".".join(parts[:count]) for count in range(len(parts)))
    return any(isinstance(model.get_submodule(parent), PackedLinear) for parent in parents)


def _norms(model: Any, checkpoint: Checkpoint, done: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Weights and biases of one dimension below the head, as norms and unpacked layers have them."""
    below_head = set(decoder_of(model).modules())
    for name in checkpoint.others():
        parent, _, own = name.rpartition(".")
        module = model.get_submodule(parent)
        if name not in done and own in (WEIGHT, BIAS) and module in below_head:
            parameter = getattr(module, own)
            if parameter.ndim == 1 and parameter.is_floating_point():
                yield name, module
