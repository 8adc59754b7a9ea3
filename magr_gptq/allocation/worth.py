"""What a width costs: how far a model's predictions are expected to move when one layer is rounded to it.

Let g be the gradient of −log p(y | x) at a layer's outputs, with y drawn from the model's own prediction p.
To second order, rounding the layer's W to W + Δ moves the predictions by

    KL(p ‖ p') ≈ ½ E[(gᵀΔx)²] ≈ ½ Σ_r E[g_r²] · (ΔHΔᵀ)_rr        H = E[xxᵀ], r over the layer's rows

The first step is the Fisher information at the layer's outputs (J. Martens, "New Insights and Perspectives on
the Natural Gradient Method", JMLR 21, 2020, section 5), the second takes errors of different rows, and errors
and gradients, as uncorrelated, as K-FAC does (J. Martens and R. Grosse, ICML 2015). The error (ΔHΔᵀ)_rr is
what GPTQ is expected to leave, so that nothing has to be rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magr_gptq.config import MagRConfig
from magr_gptq.reduction.factorization import Factorization
from magr_gptq.reduction.groups import group_views
from magr_gptq.reduction.penalty import conditional_variances
from magr_gptq.reduction.solver import reduce_each

# of a layer, to see what MagR takes off the error: rows are reduced one by one, so that some speak for all
SAMPLED_ROWS = 64


@dataclass(frozen=True)
class Width:
    """A grid that a layer may be rounded to: bits, and columns that share a scale, −1 for the whole row."""

    bits: int
    group_size: int = -1


class Shared:
    """What layers with one input share: its Hessian, H = E[xxᵀ], [in, in] float32, and what is made of it."""

    def __init__(self, hessian: Tensor) -> None:
        self.hessian = hessian
        self.variances = conditional_variances(hessian)
        self._made: Factorization | None = None

    def factorization(self, make: Callable[[], Factorization]) -> Factorization:
        """As `reduce_each` asks for it: made once."""
        if self._made is None:
            self._made = make()
        return self._made


def rounding_error(
    weight: Tensor, variances: Tensor, *, bits: int, group_size: int = -1, beta: float = 1.0
) -> Tensor:
    """The squared output error that GPTQ is expected to make on every row, [out].

        Σ_g Σ_{i∈g} eᵢ²/Uᵢᵢ²,   eᵢ² = δ_g²/12                   where |wᵢ| ≤ βm,   m = max |w_g|
                                eᵢ² = (|wᵢ| − βm + δ_g/2)²      beyond, where wᵢ is clipped

    with δ_g = 2βm/(2ᵇ − 1), the step of a grid that spans ±βm. GPTQ's loss is the sum of
    its squared rounding errors over Uᵢᵢ², exactly; that they are uniform on ±δ/2 is assumed.

    Args:
        weight: what is rounded, [out, in].
        variances: 1/Uᵢᵢ² as `conditional_variances` gives them, [in].
        beta: factor on the quantization step.
    """
    total = weight.new_zeros(len(weight))
    groups = zip(group_views(weight, group_size), group_views(variances[None], group_size), strict=True)
    for view, weights in groups:
        magnitudes = view.abs()
        edge = beta * magnitudes.amax(-1, keepdim=True)
        step = 2 * edge / (2**bits - 1)
        clipped = (magnitudes - edge + step / 2).square()
        errors = torch.where(magnitudes > edge, clipped, step.square() / 12)
        total += (errors * weights).sum((1, 2))
    return total


@torch.no_grad()
def divergences(
    weight: Tensor,
    shared: Shared,
    curvature: Tensor,
    widths: Sequence[Width],
    config: MagRConfig | None,
    rows: int = SAMPLED_ROWS,
) -> Tensor:
    """The expected divergence of the model with this layer alone rounded, at every width, [widths] float64.

        ½ Σ_r cᵣ·e_r     e_r: `rounding_error` of plain GPTQ, times what MagR leaves of it on a sample of rows

    Args:
        weight: W, [out, in] float32.
        curvature: c = E[g²] of every output, [out], in nats a token over squared units of the output.
        config: MagR's settings; None is plain GPTQ.
        rows: of the sample.
    """
    sample = torch.linspace(0, len(weight) - 1, min(rows, len(weight)), device=weight.device).long()
    found = []
    for width in widths:
        grid = {"bits": width.bits, "group_size": width.group_size}
        plain = rounding_error(weight, shared.variances, **grid) * curvature
        total = plain.sum().double()
        if config is not None:
            reduced = _reduced_errors(weight[sample], shared, width, config) @ curvature[sample]
            # both are 0 where the sampled rows are
            total = total * (reduced.min() / plain[sample].sum()).nan_to_num(1.0).double()
        found.append(total / 2)
    return torch.stack(found).cpu()


def _reduced_errors(weight: Tensor, shared: Shared, width: Width, config: MagRConfig) -> Tensor:
    """What GPTQ after MagR is expected to leave of the rows, by factor on the step, [factors, rows]."""
    grid = {"bits": width.bits, "group_size": width.group_size}
    plan = config.resolve(width.bits, width.group_size)
    (found,) = reduce_each(
        weight, shared.hessian, plan, (config.penalty(width.group_size),), shared.factorization
    )
    change = found.weight - weight
    moved = torch.linalg.vecdot(change @ shared.hessian, change)
    return torch.stack(
        [
            moved + rounding_error(found.weight, shared.variances, **grid, beta=beta)
            for beta in config.betas(width.bits, width.group_size)
        ]
    )
