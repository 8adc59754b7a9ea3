"""The weights of a checkpoint as its toolkit's kernels read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from magr_score.loaders import LOADERS

# a model answers to so many tokens before its weights are read: some are unpacked by the first call
TOKENS = 32


@torch.no_grad()
def dequantized(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Name and weight [out, in] of every linear layer, packed or not, as the toolkit computes with it."""
    model(input_ids=torch.arange(1, TOKENS + 1, device=model.device)[None])
    for name, module in model.named_modules():
        if hasattr(module, "dequantize_weight"):
            yield name, module.dequantize_weight().T.contiguous()
        elif hasattr(module, "qweight"):
            yield name, _answer_to_identity(module)
        elif isinstance(module, nn.Linear):
            yield name, module.weight


def _answer_to_identity(module: Any) -> Tensor:
    """A kernel that hides its weight answers with it; in float32 every product is exact."""
    bias, module.bias = module.bias, None
    answer: Tensor = module(torch.eye(module.infeatures, device=module.qweight.device)).T.contiguous()
    module.bias = bias
    return answer


def save(request: dict[str, Any]) -> dict[str, Any]:
    """Write the weights by name into a file that torch loads; the names.

    Args:
        request: checkpoint, a folder; engine, of `LOADERS`; out, the file.
    """
    model = LOADERS[request["engine"]].load(request["checkpoint"], "cpu", torch.float32)
    weights = {name: weight.detach().cpu() for name, weight in dequantized(model)}
    torch.save(weights, request["out"])
    return {"layers": list(weights)}
