"""Scales for codes that are settled: least error group by group, then less bias of the row's output."""

from __future__ import annotations

import torch
from torch import Tensor

from magr_gptq.reduction.groups import group_views
from magr_gptq.reduction.hessian import squared_norm
from magr_gptq.rounding.choice import KAPPA

# a group, or a row, is scaled by at most this, up or down: beyond it is lost, and its direction says nothing
LARGEST = 2.0
# of the diagonal; groups whose outputs are nearly parallel share the change
RIDGE = 1e-4
# rows are fitted in chunks of this many elements of A: 64 MiB
CHUNK_ELEMENTS = 2**24


def fitted_factors(
    signal: Tensor, quantized: Tensor, hessian: Tensor, group_of: Tensor, groups: int
) -> Tensor:
    """f of every group of every row, [rows, groups]: argmin ‖Ŵ − Σ_g f_g·Q_g‖²_H, Q_g group g's part of Q.

    With A_gh = Q_g H Q_hᵀ the change f − 1 solves A(f − 1) = (ŴHQ_gᵀ − Σ_h A_gh)_g, one system a row, with a
    ridge of 1e-4 of A's diagonal. The step towards its solution ends where a factor would leave [1/2, 2]; on
    the way there the loss only falls.

    Args:
        signal, quantized: ŴH and Q, [rows, columns].
        hessian: [columns, columns].
        group_of: the group of every column, [columns]; all groups are of one size but for the last.
        groups: their number.
    """
    size = int((group_of == 0).sum())
    if (group_of.diff() < 0).any():
        order = group_of.argsort(stable=True)
        signal, quantized, hessian = signal[:, order], quantized[:, order], hessian[order][:, order]
    chunk = max(1, CHUNK_ELEMENTS // groups**2)
    pairs = zip(torch.split(signal, chunk), torch.split(quantized, chunk), strict=True)
    return torch.cat([_fit(s, q, hessian, size) for s, q in pairs])


def _fit(signal: Tensor, quantized: Tensor, hessian: Tensor, size: int) -> Tensor:
    gram = _gram(quantized, hessian, size)
    slope = _group_sums(signal * quantized, size) - gram.sum(2)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # a group that is all zero, or that no input reached, stays as it is
    ridge = torch.where(diagonal > 0, RIDGE * diagonal, 1.0)
    diagonal.add_(ridge)  # in the Gram matrices themselves: a copy is most of their cost
    change, _ = torch.linalg.solve_ex(gram, slope)
    change = change * _within_bounds(change)
    quadratic = torch.linalg.vecdot(change, (gram @ change[..., None])[..., 0] - ridge * change)
    falls = quadratic < 2 * torch.linalg.vecdot(change, slope)  # what is not finite doesn't
    return torch.where(falls[:, None], 1 + change, 1.0)


def _gram(quantized: Tensor, hessian: Tensor, size: int) -> Tensor:
    """A of every row, [rows, groups, groups]; only the products of one triangle are made."""
    rows, columns = quantized.shape
    if size == columns:
        return squared_norm(quantized, hessian)[:, None, None]
    starts = range(0, columns, size)
    gram = quantized.new_empty(rows, len(starts), len(starts))
    for group, start in enumerate(starts):
        here = slice(start, start + size)
        product = (quantized[:, here] @ hessian[here, start:]).mul_(quantized[:, start:])
        gram[:, group, group:] = gram[:, group:, group] = _group_sums(product, size)
    return gram


def _group_sums(values: Tensor, size: int) -> Tensor:
    """Of every row and group, [rows, groups]."""
    return torch.cat([view.sum(-1) for view in group_views(values, size)], dim=-1)


def _within_bounds(change: Tensor) -> Tensor:
    """The share of every row's change that keeps its factors in [1/2, 2], at most 1, [rows, 1]."""
    room = torch.where(change > 0, LARGEST - 1, 1 - 1 / LARGEST)
    return (room / change.abs()).amin(1, keepdim=True).clamp_max(1)


def balanced_gain(signal: Tensor, original: Tensor, quantized: Tensor, kappa: float = KAPPA) -> Tensor:
    """g = (1 + κ)/(1 + κs) of every row, [rows], with the slope s = ⟨Ŵ, Q⟩_H / ⟨Ŵ, Ŵ⟩_H.

    It is argmin ‖Ŵ − gQ‖²_H + κ(1 − gs)²‖Ŵ‖²_H of rows whose scales are fitted, so that ⟨Q, Q⟩_H is ⟨Ŵ, Q⟩_H:
    the bias of the outputs, which is 1 − gs of them, counts κ times extra. At κ = 0 the fit stays, and at
    κ = ∞ no bias does.

    1 where g lies outside [1/2, 2), or where the row has no output.

    Args:
        signal, original, quantized: ŴH, Ŵ and Q, [rows, columns].
    """
    slope = torch.linalg.vecdot(signal, quantized) / torch.linalg.vecdot(signal, original)
    gain = (1 + kappa) / (1 + kappa * slope)
    usable = (gain >= 1 / LARGEST) & (gain < LARGEST)
    return torch.where(usable, gain, 1.0)
