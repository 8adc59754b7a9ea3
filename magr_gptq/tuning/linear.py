"""A quantized layer as a function of its scales: y = x·Wᵀ with W = s·(q − z), the codes fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weight(scales: Tensor, codes: Tensor, group: Tensor) -> Tensor:
    """W = s·(q − z), [out, in]; column i has the scales of group[i].

    Args:
        scales: [out, groups]. codes: integers q − z, [out, in]. group: int64 [in].
    """
    return scales.index_select(1, group) * codes


def linear(inputs: Tensor, scales: Tensor, codes: Tensor, group: Tensor) -> Tensor:
    """y = x·Wᵀ [..., out], differentiable in x and s; W is made again on the way back rather than kept.

        ∂L/∂s[r, g] = Σ_{i in g} (q − z)[r, i] · (∂L/∂W)[r, i]

    With one scale a row y = s·x(q − z)ᵀ: the product is kept for the way back, and ∂L/∂W is never made.

    Args:
        inputs: x [..., in], in the dtype to compute in. scales: float32, and others: see `weight`.

    Source: the step sizes of LSQ (arXiv 1902.08153) and of EfficientQAT (arXiv 2407.11062), without their
    gradient through the rounding, as no code can move here.
    """
    if scales.shape[1] == 1:
        sums: Tensor = _Sums.apply(inputs, codes)  # type: ignore[no-untyped-call]
        return sums * scales[:, 0].to(inputs.dtype)
    result: Tensor = _Linear.apply(inputs, scales, codes, group)  # type: ignore[no-untyped-call]
    return result


class _Sums(torch.autograd.Function):
    """x(q − z)ᵀ."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return inputs @ codes.to(inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        (codes,) = ctx.saved_tensors
        return (gradient @ codes.to(gradient.dtype) if ctx.needs_input_grad[0] else None), None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scales: Tensor, codes: Tensor, group: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, scales, codes, group)
        return inputs @ weight(scales, codes, group).to(inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, scales, codes, group = ctx.saved_tensors
        by_inputs = by_scales = None
        if ctx.needs_input_grad[0]:
            by_inputs = gradient @ weight(scales, codes, group).to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            by_weight = gradient.flatten(0, -2).T @ inputs.flatten(0, -2)
            by_scales = torch.zeros_like(scales).index_add_(1, group, by_weight.to(scales.dtype) * codes)
        return by_inputs, by_scales, None, None
